"""Functions that a model may call, and options out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from magistral_mlx.chat.messages import Tool
from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.schema import JSONObject, Request

Choice = Literal["auto", "required", "none"]


def _function_only(tool: Any) -> Any:
    """Tools that a server runs itself are many, and have fields of their own."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind not in ("function", "custom"):
        raise ValueError(
            f"this server runs no tools of its own, such as {kind[:100]!r}: only functions are "
            "supported"
        )
    return tool


# For the items of `tools`.
FunctionOnly = BeforeValidator(_function_only)


class FunctionIn(Request):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: JSONObject | None = None
    strict: Annotated[
        bool | None,
        Field(description="Hold calls to the schemas while they are written. One tool's counts."),
    ] = None


def tool_options(
    functions: Sequence[FunctionIn] | None, choice: Choice, names: Sequence[str] | None = None
) -> dict[str, Any]:
    """The fields of `Options` for these functions, or for those of them that are named.

    Raises:
        BadRequest: a name that none of them has.
    """
    functions = functions or ()
    known = [function.name for function in functions]
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
        "strict_tools": any(each.strict for each in functions),
    }


def _tool(function: FunctionIn) -> Tool:
    schema = {} if function.parameters is None else {"parameters": function.parameters}
    return Tool(function.name, function.description or "", **schema)
