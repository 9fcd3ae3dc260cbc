"""Tools, the choice among them, and what an answer must look like."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from magistral_mlx.server.functions import FunctionIn
from magistral_mlx.server.schema import JSONObject, Many, Request


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
    tools: Many[AllowedFunction]


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
