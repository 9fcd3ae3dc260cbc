"""Python functions as tools: their schemas from signature and docstring, and calls to them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from magistral_mlx.chat.messages import Tool, ToolResult
from magistral_mlx.errors import InvalidOption
from magistral_mlx.events import ToolCall

_MOST_ERROR = 2000  # characters of an exception that the model gets


@dataclass(frozen=True, slots=True)
class CallableTool(Tool):
    """A tool that is a Python function, and can be called."""

    function: Callable[..., Any] | None = None


def function_tool(function: Callable[..., Any]) -> CallableTool:
    """The tool that a function is: its name, its docstring, and a JSON schema of its parameters.

    Types are those that pydantic knows; a parameter without one takes anything. The docstring's
    section "Args:", or its ":param name:" lines, describe the parameters.

    Raises:
        InvalidOption: a function whose parameters have no schema.
    """
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    name = getattr(function, "__name__", type(function).__name__)
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise InvalidOption(f"the tool {name} has no name that a model could call. Use def.")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]
        schema = adapter.json_schema()
    except (PydanticUserError, NameError, TypeError) as error:
        raise _no_schema(name, first_line(error)) from error
    if schema.get("type") != "object":
        raise _no_schema(name, "they are positional")
    text, described = _docstring(inspect.getdoc(function) or "")
    for parameter, property in schema.get("properties", {}).items():
        property.pop("title", None)
        if parameter in described:
            property.setdefault("description", described[parameter])
    return CallableTool(name, text, schema, function=function)


def first_line(error: Exception) -> str:
    """The first line of a message of pydantic's, without its full stop."""
    return " ".join(str(error).split("\n")[0].split()).rstrip(".")


def _no_schema(name: str, reason: str) -> InvalidOption:
    return InvalidOption(
        f"the parameters of the tool {name} have no JSON schema: {reason}. Give each a name, and a "
        "type that pydantic knows."
    )


def call_tool(tool: CallableTool, call: ToolCall) -> Any:
    """Call the function of a tool -> what it returns, a coroutine perhaps.

    Arguments are converted to the types of its parameters.

    Raises:
        ValueError: arguments that do not fit. Whatever the function raises.
    """
    from pydantic import validate_call
    from pydantic_core import from_json

    assert tool.function is not None
    arguments = from_json(call.arguments or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no JSON object.")
    return validate_call(tool.function)(**arguments)


def result_of(call: ToolCall, value: Any) -> ToolResult:
    """The message with what a tool returned: text as it is, all else as JSON."""
    from pydantic_core import to_json

    text = value if isinstance(value, str) else to_json(value, fallback=str).decode()
    return _result(call, text)


def result_of_error(call: ToolCall, error: BaseException) -> ToolResult:
    """The message that tells the model what went wrong with its call."""
    reason = f"{type(error).__name__}: {error}"[:_MOST_ERROR]
    return _result(call, f"The call of {call.name} failed. {reason}")


def _result(call: ToolCall, text: str) -> ToolResult:
    """A result; bytes of it that are no UTF-8, as file names may have, are spelled out."""
    return ToolResult(text.encode(errors="backslashreplace").decode(), call.id)


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """A docstring without its sections, and the descriptions of parameters."""
    described = {
        name: " ".join(words.split())
        for name, words in re.findall(
            r"^:param (?:[^:\n]* )?(\w+):((?:.*)(?:\n[ \t]+.*)*)", text, re.MULTILINE
        )
    }
    section = re.search(r"^(?:Args|Arguments|Parameters):\n((?:[ \t]+.*\n?|\n)*)", text, re.M)
    if section:
        body = inspect.cleandoc(section[1])
        for name, words in re.findall(
            r"^(\w+)(?: ?\([^)]*\))?:((?:.*)(?:\n[ \t]+.*)*)", body, re.MULTILINE
        ):
            described[name] = " ".join(words.split())
    end = re.search(
        r"^(?:(?:Args|Arguments|Parameters|Returns|Raises|Yields|Examples?):\s*$|:\w)", text, re.M
    )
    return (text[: end.start()] if end else text).strip(), described
