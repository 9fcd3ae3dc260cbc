"""Tools, the choice among them, and what an answer must look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from magistral_mlx.chat.messages import Tool
from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.schema import JSONObject, Request

Choice = Literal["auto", "required", "none"]


class FunctionIn(Request):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: JSONObject | None = None
    strict: Annotated[
        bool | None,
        Field(description="Hold calls to the schemas while they are written. One tool's counts."),
    ] = None


class ToolIn(Request):
    """A tool. Functions are the only kind."""

    type: Literal["function"] = "function"
    function: FunctionIn


class FunctionName(Request):
    name: str


class NamedChoice(Request):
    """This function must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedFunction(Request):
    type: Literal["function"] = "function"
    function: FunctionName


class AllowedFunctions(Request):
    mode: Literal["auto", "required"]
    tools: list[AllowedFunction]


class AllowedChoice(Request):
    """Some of the tools may or must be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


ChoiceIn = (
    Literal["none", "auto", "required", "any"]
    | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]
)


class TextFormat(Request):
    """Text without a form."""

    type: Literal["text"]


class JSONFormat(Request):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Request):
    """The schema is always kept to, whatever `strict` says."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[JSONObject | None, Field(alias="schema")] = None
    strict: bool | None = None


class SchemaFormat(Request):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


FormatIn = Annotated[TextFormat | JSONFormat | SchemaFormat, Field(discriminator="type")]


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
