"""Translation of requests that protocols share: conversations, tools, reasoning effort."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from magistral_mlx.api.options import Options, ThinkingOption
from magistral_mlx.chat.messages import Tool
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.request_body import JSONObject, NonEmptyText, RequestSchema

_LONGEST_NAME = 64  # characters of a function's name in the template
_TEXT_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}

Part = dict[str, Any]
ToolChoiceMode = Literal["auto", "required", "none"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Magistral was trained without levels of effort: a budget ends its trace at a sentence's end and
# has it answer. "high" and above leave the end to the model.
_BUDGETS: dict[str, ThinkingOption] = {
    "none": "off",
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": "on",
    "xhigh": "on",
    "max": "on",
}
EFFORT_DESCRIPTION = (
    "How long to think at most: none is no thinking, minimal 512 tokens, low 2,048, medium 8,192; "
    "high, xhigh and max leave the end to the model, as does leaving this out. At the end of a "
    "budget the trace is closed and the answer follows."
)


class MessageBuilder:
    """Builds chat messages from the items or blocks of a conversation, in order.

    A tool's result may hold images, which the model's template allows in a user's turn only: they
    follow all results as a user's turn.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._thinking: str | None = None  # of an assistant's turn that has not begun
        self._images: list[Part] = []  # of tools' results

    def system(self, content: str | list[Part]) -> None:
        """Add a system message."""
        self._close()
        self._messages.append({"role": "system", "content": content})

    def user(self, content: str | list[Part]) -> None:
        """Add a user's turn."""
        images, self._images = self._images, []
        self._close()
        if images:
            content = [text_part(content)] if isinstance(content, str) else content
            content = [*images, *content]
        self._messages.append({"role": "user", "content": content})

    def thinking(self, text: str) -> None:
        """Add thinking before the model's next text or call."""
        self._add_images()
        self._thinking = (self._thinking or "") + text

    def text(self, text: str) -> None:
        """Add text of the model."""
        self._assistant()["content"] += text

    def call(self, name: str, arguments: Any, id: str | None) -> None:
        """Add a tool call of the model."""
        function = {"name": template_name(name), "arguments": arguments}
        call = {"id": id, "function": function}
        self._assistant().setdefault("tool_calls", []).append(call)

    def result(self, content: str | list[Part], id: str | None) -> None:
        """Add a tool's result."""
        self._close(images=False)
        if not isinstance(content, str):
            images = [part for part in content if part["type"] != "text"]
            self._images += images
            content = [part for part in content if part["type"] == "text"]
            if images and not content:
                content = [text_part("(see the image)")]
        self._messages.append({"role": "tool", "tool_call_id": id, "content": content})

    def add(self, message: dict[str, Any]) -> None:
        """Add a whole message as a dict."""
        content = message.get("content")
        match message["role"]:
            case "tool" | "function":
                self.result(content or "", message.get("tool_call_id"))
            case "user":
                self.user("" if content is None else content)
            case _:
                self._close()
                calls = message.get("tool_calls") or ()
                named = {"tool_calls": [_renamed(call) for call in calls]} if calls else {}
                self._messages.append(message | named)

    def messages(self) -> list[dict[str, Any]]:
        """Return all messages, as dicts for `to_messages`."""
        self._close()
        return self._messages

    def _assistant(self) -> dict[str, Any]:
        """The model's turn that is being built."""
        self._add_images()
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "assistant" or self._thinking is not None:
            last = {"role": "assistant", "content": ""}
            if self._thinking is not None:
                last["reasoning_content"], self._thinking = self._thinking, None
            self._messages.append(last)
        return last

    def _close(self, *, images: bool = True) -> None:
        """End the model's turn."""
        if self._thinking is not None:
            self._assistant()
        elif images:
            self._add_images()

    def _add_images(self) -> None:
        if self._images:
            images, self._images = self._images, []
            self._messages.append({"role": "user", "content": images})


def _renamed(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return call | {"function": function | {"name": template_name(function["name"])}}


def continue_last(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mark a last turn of the model to be continued, as clients expect it."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or last.get("tool_calls") or "prefix" in last:
        return messages
    return [*messages[:-1], last | {"prefix": True}]


def text_part(text: str) -> Part:
    """A part of text."""
    return {"type": "text", "text": text}


def image_part(url: str, where: str | None = None) -> Part:
    """A part with an image; `where` is its field in the request, which errors name."""
    part = {"type": "image_url", "image_url": {"url": url}}
    return part if where is None else part | {"where": where}


def _function_only(tool: Any) -> Any:
    """Refuse hosted tools, whose types are many and have fields of their own."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind not in ("function", "custom"):
        raise ValueError(
            f"this server runs no tools of its own, such as {kind[:100]!r}: only functions are "
            "supported"
        )
    return tool


# For the items of `tools`.
FunctionOnly = BeforeValidator(_function_only)


class FunctionSchema(RequestSchema):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: NonEmptyText
    description: str | None = None
    parameters: JSONObject | None = None
    strict: Annotated[
        bool | None,
        Field(description="Hold calls to the schema exactly; without it, as far as possible."),
    ] = None


class TextFunction(FunctionSchema):
    """A function that takes one text, `input`, which follows `grammar` (Lark) if there is one."""

    parameters: JSONObject | None = Field(default_factory=lambda: dict(_TEXT_INPUT))
    grammar: str = ""


def tool_options(
    functions: Sequence[FunctionSchema] | None,
    choice: ToolChoiceMode,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The fields of `Options` for these functions, restricted to `names` if given.

    Raises:
        BadRequest: an unknown name, or one that two functions have.
    """
    functions = functions or ()
    known = [function.name for function in functions]
    for name, count in Counter(known).items():
        if count > 1:
            raise BadRequest(
                f"{count} tools have the name {name[:100]!r}. The model calls a tool by its name: "
                "give each one of its own.",
                param="tools",
            )
    for name in names or ():
        if name not in known:
            raise BadRequest(
                f"tool_choice names the function {name[:100]!r}, and the tools hold "
                f"{', '.join(known) or 'none'}.",
                param="tool_choice",
            )
    if not functions and choice != "required":
        return {}
    return {
        "tools": [_tool(each) for each in functions if names is None or each.name in names],
        "tool_choice": choice,
    }


def with_form(options: dict[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the form of the text, given as options too.

    Where a call is required the answer has no text: the form is checked, and holds for none.

    Raises:
        InvalidOption: a form that is none.
    """
    given = {name: value for name, value in form.items() if value is not None}
    if options.get("tool_choice") != "required":
        return options | given
    Options(**given)
    return options


def _tool(function: FunctionSchema) -> Tool:
    schema = {} if function.parameters is None else {"parameters": function.parameters}
    return Tool(
        template_name(function.name),
        function.description or "",
        strict=bool(function.strict),
        text_grammar=function.grammar if isinstance(function, TextFunction) else "",
        **schema,
    )


def template_name(name: str) -> str:
    """The name of a function in the prompt, as the template accepts names.

    One with other characters, such as dots, or of more than 64 gets a hash.
    """
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", name)
    if plain == name and 0 < len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{plain[: _LONGEST_NAME - 9]}_{digest}"


def own_names(functions: Iterable[FunctionSchema]) -> dict[str, str]:
    """The functions' own names, by those in the prompt."""
    return {template_name(function.name): function.name for function in functions}


def thinking_of(effort: Effort | None) -> ThinkingOption:
    """The value of `Options.thinking` for an effort; "on" for None."""
    return "on" if effort is None else _BUDGETS[effort]
