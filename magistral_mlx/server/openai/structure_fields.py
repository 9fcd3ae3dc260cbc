"""What holds an answer to a form, as OpenAI, vLLM and llama-server spell it, as one option."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, JsonValue

from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.option_values import option_field
from magistral_mlx.server.request_body import JSONObject, Many, RequestSchema

EXTENSION = "Not in OpenAI's API."
ANY_OBJECT = {"type": "object"}
SchemaValue = Annotated[JSONObject | str | bool, Field(union_mode="left_to_right")]


class StructuredOutputs(RequestSchema):
    """One form of the answer, in vLLM's spelling."""

    json_: Annotated[SchemaValue | None, Field(alias="json", description="A JSON schema.")] = None
    regex: str | None = None
    choice: Many[str] | None = None
    grammar: str | None = None
    json_object: Annotated[bool | None, Field(description="Any JSON object.")] = None
    structural_tag: Annotated[JsonValue, Field(description="Refused.")] = None


class StructureFields(RequestSchema):
    """Forms of the answer besides `response_format`, of which a request may give one."""

    json_schema: Annotated[
        SchemaValue | None, option_field("json_schema", "As in llama-server.", EXTENSION)
    ] = None
    regex: Annotated[str | None, option_field("regex", EXTENSION)] = None
    choice: Annotated[Many[str] | None, option_field("choice", EXTENSION)] = None
    grammar: Annotated[str | None, option_field("grammar", EXTENSION)] = None
    structured_outputs: Annotated[
        StructuredOutputs | None, Field(description="One form of the answer, as vLLM takes it.")
    ] = None
    guided_json: Annotated[
        SchemaValue | None, Field(description="Another name of json_schema.")
    ] = None
    guided_regex: Annotated[str | None, Field(description="Another name of regex.")] = None
    guided_choice: Annotated[Many[str] | None, Field(description="Another name of choice.")] = None
    guided_grammar: Annotated[str | None, Field(description="Another name of grammar.")] = None


def structure_options(
    request: StructureFields, response_format: SchemaValue | None = None
) -> dict[str, Any]:
    """The field of `Options` that holds the answer to a form; empty for none.

    Args:
        response_format: the schema that this field of OpenAI's stands for.

    Raises:
        BadRequest: two forms, or one that cannot be kept to.
    """
    forms: list[tuple[str, str, Any]] = [("response_format", "json_schema", response_format)]
    for option in ("json_schema", "regex", "choice", "grammar"):
        forms.append((option, option, getattr(request, option)))
        guided = f"guided_{option.removesuffix('_schema')}"
        forms.append((guided, option, getattr(request, guided)))
    forms += _structured_outputs(request.structured_outputs)
    given = [(field, option, value) for field, option, value in forms if value is not None]
    if len({(option, repr(value)) for _, option, value in given}) > 1:
        fields = [field for field, _, _ in given]
        raise BadRequest(f"{' and '.join(fields)} exclude each other: give one.", param=fields[1])
    return {option: value for _, option, value in given}


def _structured_outputs(asked: StructuredOutputs | None) -> list[tuple[str, str, Any]]:
    if asked is None:
        return []
    if asked.structural_tag is not None:
        raise BadRequest(
            "structured_outputs.structural_tag is not supported: give json, regex, choice or "
            "grammar.",
            param="structured_outputs",
        )
    forms = {
        "json": ("json_schema", asked.json_),
        "json_object": ("json_schema", ANY_OBJECT if asked.json_object else None),
        "regex": ("regex", asked.regex),
        "choice": ("choice", asked.choice),
        "grammar": ("grammar", asked.grammar),
    }
    return [
        (f"structured_outputs.{name}", option, value) for name, (option, value) in forms.items()
    ]
