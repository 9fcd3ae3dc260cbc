"""Schemas of requests for responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from magistral_mlx.server.openai.chat_schemas import JSONFormat, TextFormat, ThinkingField
from magistral_mlx.server.request_body import (
    JSONObject,
    Many,
    MaxTokens,
    RequestBody,
    RequestSchema,
    Some,
    Table,
)
from magistral_mlx.server.request_translation import (
    EFFORT_DESCRIPTION,
    Effort,
    FunctionOnly,
    FunctionSchema,
)


class InputText(RequestSchema):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputImage(RequestSchema):
    """An image: a data URL, or a web address where the server fetches them."""

    type: Literal["input_image"]
    image_url: str
    detail: Annotated[str | None, Field(description="Accepted and ignored.")] = None


class ResponseRefusal(RequestSchema):
    type: Literal["refusal"]
    refusal: str


class InputMessage(RequestSchema):
    """A message of any role."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: (
        str | Many[Annotated[InputText | InputImage | ResponseRefusal, Field(discriminator="type")]]
    )


class ReasoningText(RequestSchema):
    type: str | None = None
    text: str


class ReasoningItem(RequestSchema):
    """The model's thinking before its next item. It should be sent back, as in training."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Many[ReasoningText] | None = None
    content: Many[ReasoningText] | None = None


class FunctionCallItem(RequestSchema):
    """A function call of the model."""

    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(RequestSchema):
    """A function's result."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Many[Annotated[InputText | InputImage, Field(discriminator="type")]]


def _kind(item: Any) -> Any:
    """The type of an item; "message" by default."""
    kind = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return "message" if kind is None else kind


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")],
    Discriminator(_kind),
]


class FunctionTool(FunctionSchema):
    """A function that the model may call. No other kinds are supported."""

    type: Literal["function"] = "function"


class FunctionChoice(RequestSchema):
    """This function must be called."""

    type: Literal["function"]
    name: str


class AllowedTool(RequestSchema):
    type: Literal["function"] = "function"
    name: str


class AllowedTools(RequestSchema):
    """Some of the tools may or must be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Many[AllowedTool]


class ResponseSchemaFormat(RequestSchema):
    """JSON that a schema describes. It is always kept to, whatever `strict` says."""

    type: Literal["json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[JSONObject, Field(alias="schema")]
    strict: bool | None = None


class TextSettings(RequestSchema):
    """Form of the text."""

    format: (
        Annotated[TextFormat | JSONFormat | ResponseSchemaFormat, Field(discriminator="type")]
        | None
    ) = None
    verbosity: Annotated[str | None, Field(description="Accepted and ignored.")] = None


class Reasoning(RequestSchema):
    """Effort of the thinking, and where it is reported."""

    effort: Annotated[Effort | None, Field(description=EFFORT_DESCRIPTION)] = None
    summary: Annotated[
        Literal["auto", "concise", "detailed"] | None,
        Field(
            description="Put the thinking, all of it, into the summary of the reasoning item, "
            "which more clients show, instead of into its content."
        ),
    ] = None


class ResponseRequest(RequestBody):
    """Input to respond to. The fields that OpenAI's API lacks say so."""

    model: Annotated[
        str | None,
        Field(description="A name of /v1/models; the first one by default."),
    ] = None
    input: str | Some[Item]
    instructions: Annotated[
        str | None, Field(description="The system prompt. It is not carried over.")
    ] = None
    previous_response_id: Annotated[
        str | None, Field(description="Continue after a response that this server still stores.")
    ] = None
    store: Annotated[
        bool | None,
        Field(description="Store it, so that another may follow. In memory, the last few 100."),
    ] = None
    stream: bool | None = None
    max_output_tokens: Annotated[
        MaxTokens, Field(description="Tokens to produce at most, thinking included.")
    ] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    include: Annotated[
        Many[str] | None,
        Field(description="message.output_text.logprobs counts; the others are ignored."),
    ] = None
    reasoning: Reasoning | None = None
    text: TextSettings | None = None
    tools: Many[Annotated[FunctionTool, FunctionOnly]] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[FunctionChoice | AllowedTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None,
        Field(description="auto leaves out the oldest turns where the context is too small."),
    ] = None
    background: Annotated[bool | None, Field(description="Refused if true.")] = None
    conversation: Annotated[Any, Field(description="Refused: use previous_response_id.")] = None
    metadata: Annotated[Table[str] | None, Field(description="Comes back with the response.")] = (
        None
    )
    user: Annotated[Any, Field(description="Accepted and ignored.")] = None
    seed: Annotated[
        int | None, Field(description="The same one gives the same tokens. Not in OpenAI's API.")
    ] = None
    thinking: Annotated[
        ThinkingField | None,
        Field(
            description='"on", "off", or the most tokens of thinking. It overrides '
            "reasoning.effort. Not in OpenAI's API."
        ),
    ] = None
