"""Tools of responses as functions of the prompt, and calls of functions as the tools' own items.

The template knows functions only, with names of letters, digits, dashes and underscores:

- a function of a namespace is called `namespace__name` there,
- a custom (freeform) tool is a function with one text, `input`,
- `local_shell` is a function with the fields of its action,
- tools that the vendor runs, such as `web_search`, are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json

from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.openai.response_schemas import (
    AllowedTools,
    CustomTool,
    FunctionTool,
    HostedTool,
    LocalShellTool,
    NamespaceTool,
    ResponseRequest,
    ResponseTool,
    ToolChoiceByName,
)
from magistral_mlx.server.request_translation import (
    FunctionSchema,
    TextFunction,
    template_name,
    tool_options,
)

LOCAL_SHELL = "local_shell"
ToolKind = Literal["function", "custom", "local_shell"]
_SHELL = {
    "type": "object",
    "properties": {
        "command": {"type": "array", "items": {"type": "string"}},
        "working_directory": {"type": "string"},
        "timeout_ms": {"type": "integer"},
    },
    "required": ["command"],
}


@dataclass(frozen=True)
class ToolName:
    """A tool's own name, its namespace, and its kind."""

    name: str
    namespace: str | None = None
    kind: ToolKind = "function"


class ResponseTools:
    """The tools of one request."""

    def __init__(self, tools: Sequence[ResponseTool] | None) -> None:
        self.functions: list[FunctionSchema] = []
        self._names: dict[str, ToolName] = {}
        self._hosted: list[str] = []
        for tool in tools or ():
            self._add(tool)

    def name_of(self, function: str) -> ToolName:
        """The tool that a function of the prompt stands for."""
        return self._names.get(function, ToolName(function))

    def options(self, request: ResponseRequest) -> dict[str, Any]:
        """The fields of `Options` for the tools and the choice among them.

        Raises:
            BadRequest: a choice of an unknown tool, or of one that this server does not run.
        """
        match request.tool_choice:
            case ToolChoiceByName() as chosen:
                return tool_options(self.functions, "required", [self._chosen(chosen)])
            case AllowedTools(mode=mode, tools=allowed):
                names = [self._chosen(tool) for tool in allowed if not self._is_hosted(tool)]
                return tool_options(self.functions, mode, names)
            case "none" | "required" as mode:
                return tool_options(self.functions, mode)
        return tool_options(self.functions, "auto")

    def _add(self, tool: ResponseTool, namespace: NamespaceTool | None = None) -> None:
        within = None if namespace is None else namespace.name
        match tool:
            case FunctionTool():
                description = tool.description or ""
                if namespace is not None and namespace.description:
                    description = f"{namespace.description}\n\n{description}"
                self._function(ToolName(tool.name, within), tool, description)
            case CustomTool():
                custom = TextFunction(name=tool.name, grammar=_grammar(tool))
                description = tool.description or ""
                if custom.grammar:
                    description += f"\n\nThe input follows this grammar:\n{custom.grammar}"
                self._function(ToolName(tool.name, within, "custom"), custom, description)
            case LocalShellTool():
                shell = FunctionSchema(name=LOCAL_SHELL, parameters=_SHELL)
                name = ToolName(LOCAL_SHELL, None, "local_shell")
                self._function(name, shell, "Runs a command in the user's shell.")
            case NamespaceTool(tools=members):
                for member in members:
                    self._add(member, tool)
            case HostedTool(type=kind):
                self._hosted.append(kind)

    def _function(self, name: ToolName, schema: FunctionSchema, description: str) -> None:
        function = function_name(name.name, name.namespace)
        self._names[function] = name
        changed = {"name": function, "description": description}
        self.functions.append(schema.model_copy(update=changed))

    def _chosen(self, choice: ToolChoiceByName) -> str:
        if self._is_hosted(choice):
            raise BadRequest(
                f"tool_choice asks for {choice.type[:100]!r}, which this server does not run. "
                "Choose a function, a custom tool or local_shell.",
                param="tool_choice",
            )
        if choice.type == LOCAL_SHELL:
            return LOCAL_SHELL
        if choice.name is None:
            raise BadRequest("tool_choice.name is missing: it names the tool.", param="tool_choice")
        named = [
            function
            for function, name in self._names.items()
            if name.name == choice.name and choice.namespace in (None, name.namespace)
        ]
        return named[0] if named else choice.name

    def _is_hosted(self, choice: ToolChoiceByName) -> bool:
        return choice.type not in ("function", "custom", LOCAL_SHELL)


def function_name(name: str, namespace: str | None = None) -> str:
    """The name of a tool's function in the prompt."""
    full = name if namespace is None else f"{namespace.rstrip('_')}__{name}"
    return template_name(full)


def _grammar(tool: CustomTool) -> str:
    """The Lark grammar of the tool's input; "" for any text.

    Raises:
        BadRequest: a form that this server does not know.
    """
    form = tool.format
    if form is None or form.type == "text":
        return ""
    if form.type != "grammar" or form.syntax not in ("lark", "regex") or not form.definition:
        raise BadRequest(
            f"the format of the custom tool {tool.name[:100]!r} is not supported: give "
            '{"type": "text"}, or {"type": "grammar"} with the syntax "lark" or "regex" and a '
            "definition.",
            param="tools",
        )
    if form.syntax == "lark":
        return form.definition
    return "start: /" + re.sub(r"(?<!\\)((?:\\\\)*)/", r"\1\/", form.definition) + "/"


def custom_arguments(text: str) -> str:
    """The arguments of a custom tool's function for its input."""
    return json.dumps({"input": text}, ensure_ascii=False)


def custom_input(arguments: str) -> str:
    """The input of a custom tool out of its function's arguments, as far as they go."""
    found = _partial(arguments).get("input")
    return found if isinstance(found, str) else arguments


def shell_action(arguments: str) -> dict[str, Any]:
    """The action of a local_shell_call out of its function's arguments, as far as they go."""
    found = _partial(arguments)
    command = found.get("command")
    if isinstance(command, str):  # as a model may write it
        command = ["bash", "-lc", command]
    words = [str(word) for word in command] if isinstance(command, list) else []
    action: dict[str, Any] = {"type": "exec", "command": words, "env": {}}
    for name, kind in (("working_directory", str), ("timeout_ms", int)):
        if isinstance(found.get(name), kind):
            action[name] = found[name]
    return action


def _partial(arguments: str) -> dict[str, Any]:
    try:
        found = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:  # the model wrote no JSON
        return {}
    return found if isinstance(found, dict) else {}
