"""Schemas of requests for chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from magistral_mlx.server.openai.mistral import DocumentURLPart, MistralFields
from magistral_mlx.server.openai.sampling_schemas import EXTENSION, SamplingFields
from magistral_mlx.server.openai.structure_fields import StructureFields
from magistral_mlx.server.openai.thinking_fields import ThinkingFields
from magistral_mlx.server.option_values import MaxTokens, option_field
from magistral_mlx.server.request_body import JSONObject, Many, RequestSchema, Some
from magistral_mlx.server.request_translation import FunctionOnly, FunctionSchema


class TextPart(RequestSchema):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingPart(RequestSchema):
    """A piece of thinking, in Mistral's style."""

    type: Literal["thinking"]
    thinking: str | Many[TextPart]


class RefusalPart(RequestSchema):
    """A refusal, read as text."""

    type: Literal["refusal"]
    refusal: str


class ImageURL(RequestSchema):
    """Location of an image."""

    url: Annotated[
        str,
        Field(
            description="A data URL (data:image/png;base64,…). A web address where the server was "
            "started with --allow-remote-images. Never a file of the server's machine."
        ),
    ]
    detail: Annotated[str | None, Field(description="Accepted and ignored.")] = None


class ImagePart(RequestSchema):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL | str


class FileData(RequestSchema):
    file_data: Annotated[str, Field(description="Its bytes in base64, or as a data URL.")]
    filename: str | None = None


class FileContent(RequestSchema):
    """A file: a PDF, text, code, or an image."""

    type: Literal["file"]
    file: FileData


class EarlierFunctionCall(RequestSchema):
    """A function's name and its arguments: text as the model wrote it, or a JSON value."""

    name: str
    arguments: JsonValue = None


class EarlierToolCall(RequestSchema):
    """A call to a tool, in an earlier turn of the model."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: EarlierFunctionCall


class SystemMessage(RequestSchema):
    """The system prompt, in place of the model's own, which asks it to think.

    Where `reasoning_effort` or `thinking` asks for that, the model's own comes before it.
    """

    role: Literal["system", "developer"]
    content: str | Many[Annotated[TextPart | ThinkingPart, Field(discriminator="type")]]


class UserMessage(RequestSchema):
    """A user's turn."""

    role: Literal["user"]
    content: (
        str
        | Many[
            Annotated[
                TextPart | ImagePart | FileContent | DocumentURLPart, Field(discriminator="type")
            ]
        ]
    )


class AssistantMessage(RequestSchema):
    """An earlier turn of the model. Its thinking should come along, as it was trained."""

    role: Literal["assistant"]
    content: (
        str
        | Many[Annotated[TextPart | ThinkingPart | RefusalPart, Field(discriminator="type")]]
        | None
    ) = None
    reasoning_content: str | None = None
    reasoning: Annotated[str | None, Field(description="Another name of reasoning_content.")] = None
    tool_calls: Many[EarlierToolCall] | None = None
    function_call: Annotated[
        EarlierFunctionCall | None, Field(description="The old form of one call.")
    ] = None
    prefix: Annotated[
        bool | None,
        Field(
            description="As the last message: the model continues it, which is the default. "
            "False is refused."
        ),
    ] = None


class ToolMessage(RequestSchema):
    """A tool's result. Its images follow as a user's turn, as the model was trained.

    function is the old name of the role.
    """

    role: Literal["tool", "function"]
    content: str | Many[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None
    tool_call_id: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class ChatTool(RequestSchema):
    """A tool. Functions are the only kind."""

    type: Literal["function"] = "function"
    function: FunctionSchema


class FunctionName(RequestSchema):
    name: str


class NamedToolChoice(RequestSchema):
    """This function must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedFunction(RequestSchema):
    type: Literal["function"] = "function"
    function: FunctionName


class AllowedFunctions(RequestSchema):
    mode: Literal["auto", "required"]
    tools: Many[AllowedFunction]


class AllowedToolsChoice(RequestSchema):
    """Some of the tools may or must be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedFunctions


ToolChoice = (
    Literal["none", "auto", "required", "any"]
    | Annotated[NamedToolChoice | AllowedToolsChoice, Field(discriminator="type")]
)


class TextFormat(RequestSchema):
    """Text of any form."""

    type: Literal["text"]


class JSONFormat(RequestSchema):
    """Any JSON object, or one that `schema` describes."""

    type: Literal["json_object"]
    schema_: Annotated[JSONObject | None, Field(alias="schema")] = None


class NamedSchema(RequestSchema):
    """The schema is always kept to, whatever `strict` says."""

    name: str | None = None
    description: str | None = None
    schema_: Annotated[JSONObject | None, Field(alias="schema")] = None
    strict: bool | None = None


class SchemaFormat(RequestSchema):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JSONFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(RequestSchema):
    """Additional contents of a stream."""

    include_usage: Annotated[
        bool | None, Field(description="End with a chunk of usage without choices.")
    ] = None


class ChatRequest(SamplingFields, ThinkingFields, StructureFields, MistralFields):
    """A conversation to answer. The fields that OpenAI's API lacks say so."""

    model: Annotated[
        str | None,
        Field(description="A name of /v1/models; the first one by default."),
    ] = None
    messages: Some[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: MaxTokens = None
    max_tokens: Annotated[
        MaxTokens, Field(description="The old name of max_completion_tokens.")
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, option_field("top_logprobs")] = None
    return_token_ids: Annotated[
        bool | None, Field(description="Tell the ids of prompt and answer, as vLLM does.")
    ] = None
    tools: Many[Annotated[ChatTool, FunctionOnly]] | None = None
    tool_choice: ToolChoice | None = None
    functions: Annotated[Any, Field(description="Refused: the old name of tools.")] = None
    function_call: Annotated[Any, Field(description="Refused: old name of tool_choice.")] = None
    parallel_tool_calls: Annotated[bool | None, option_field("parallel_tool_calls")] = None
    response_format: ResponseFormat | None = None
    min_thinking: Annotated[int | None, option_field("min_thinking", EXTENSION)] = None
    keep_thinking: Annotated[bool | None, option_field("keep_thinking", EXTENSION)] = None
    image_tokens: Annotated[int | None, option_field("image_tokens", EXTENSION, le=1_000_000)] = (
        None
    )
    reasoning_format: Annotated[
        Literal["separate", "auto", "deepseek", "mistral"] | None,
        Field(
            description="Form of the answer: separate (auto and deepseek are llama-server's names "
            "of it) puts the thinking in reasoning_content; mistral makes content a list of "
            "thinking and text chunks, as Mistral's API does, of which a stream sends the text as "
            "plain strings and each call whole. The default is "
            "mistral for Mistral's own clients, and separate for others. Not in OpenAI's API."
        ),
    ] = None
    metadata: Annotated[Any, Field(description="Accepted and ignored.")] = None
    store: Annotated[bool | None, Field(description="Accepted and ignored.")] = None
