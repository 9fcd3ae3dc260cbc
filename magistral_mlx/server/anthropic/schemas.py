"""Schemas of requests for messages."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, JsonValue, Tag

from magistral_mlx.server.foreign_fields import WithoutForeignFields, instead
from magistral_mlx.server.option_values import MaxTokens, option_field
from magistral_mlx.server.request_body import (
    JSONObject,
    Many,
    NonEmptyText,
    RequestBody,
    RequestSchema,
    Some,
)
from magistral_mlx.server.request_translation import FunctionOnly

_HOSTED = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset")


class TextBlock(RequestSchema):
    type: Literal["text"]
    text: str


class Base64Source(RequestSchema):
    """The image itself."""

    type: Literal["base64"]
    media_type: str
    data: str


class URLSource(RequestSchema):
    """Address of an image: fetched if the server was started with --allow-remote-images."""

    type: Literal["url"]
    url: str


class ImageBlock(RequestSchema):
    """An image."""

    type: Literal["image"]
    source: Annotated[Base64Source | URLSource, Field(discriminator="type")]


class TextSource(RequestSchema):
    type: Literal["text"]
    media_type: str = "text/plain"
    data: str


class FileSource(RequestSchema):
    """The file itself: a PDF, text, or an image."""

    type: Literal["base64"]
    media_type: str
    data: str


class ContentSource(RequestSchema):
    """Text and images in place of a file."""

    type: Literal["content"]
    content: str | Many[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


class DocumentBlock(RequestSchema):
    """A document. A PDF is read as its text, or as images of its pages if it has none."""

    type: Literal["document"]
    title: str | None = None
    context: Annotated[str | None, Field(description="About the document, before it.")] = None
    source: Annotated[TextSource | FileSource | ContentSource, Field(discriminator="type")]


class SearchResultBlock(RequestSchema):
    """A text that the client has found, with its source."""

    type: Literal["search_result"]
    source: str
    title: str
    content: Many[TextBlock]


class ThinkingBlock(RequestSchema):
    """The model's thinking. It should be sent back, as in training; the signature is ignored."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(RequestSchema):
    """Another model's hidden thinking, which is left out."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(RequestSchema):
    """A tool call of the model."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: JsonValue = None


class ToolResultBlock(RequestSchema):
    """A tool's result."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        str
        | Many[
            Annotated[
                TextBlock | ImageBlock | DocumentBlock | SearchResultBlock,
                Field(discriminator="type"),
            ]
        ]
        | None
    ) = None
    is_error: bool | None = None


class VendorBlock(RequestSchema):
    """Record of a tool that ran at the vendor's: left out of the prompt."""

    type: Literal[
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "mcp_tool_use",
        "mcp_tool_result",
    ]


Block = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | VendorBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock,
    Field(discriminator="type"),
]


class MessageIn(RequestSchema):
    """A turn."""

    role: Literal["user", "assistant", "system"]
    content: str | Many[Block]


class MessageTool(RequestSchema):
    """A tool that the model may call. Those that the vendor defines and clients run are refused."""

    type: Literal["custom"] | None = None
    name: NonEmptyText
    description: str | None = None
    input_schema: JSONObject
    strict: bool | None = None


class HostedMessageTool(RequestSchema):
    """A tool that the vendor runs, such as `web_search_20250305`: not offered to the model."""

    type: str
    name: str | None = None


def _tool_kind(tool: Any) -> str:
    """The tag of a tool by its type, which ends in a date."""
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "hosted" if isinstance(kind, str) and kind.startswith(_HOSTED) else "custom"


MessageToolIn = Annotated[
    Annotated[MessageTool, FunctionOnly, Tag("custom")]
    | Annotated[HostedMessageTool, Tag("hosted")],
    Discriminator(_tool_kind),
]


class MessageToolChoice(RequestSchema):
    """any: one must be called. tool: this one must."""

    type: Literal["auto", "any", "none", "tool"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingEnabled(RequestSchema):
    """Think, for `budget_tokens` at most."""

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1)]


class ThinkingDisabled(RequestSchema):
    """Answer at once."""

    type: Literal["disabled"]


class ThinkingAdaptive(RequestSchema):
    """Think, as long as output_config.effort allows."""

    type: Literal["adaptive"]


class OutputFormat(RequestSchema):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    schema_: Annotated[JSONObject, Field(alias="schema")]


class OutputConfig(RequestSchema):
    effort: Annotated[
        Literal["low", "medium", "high", "xhigh", "max"] | None,
        Field(description="Thinking tokens with adaptive thinking: low 2,048, medium 8,192."),
    ] = None
    format: OutputFormat | None = None


class CountRequest(RequestBody):
    """A conversation whose tokens are counted."""

    model: Annotated[
        str | None,
        Field(description="A name of /v1/models; the first one by default."),
    ] = None
    messages: Some[MessageIn]
    system: str | Many[TextBlock] | None = None
    tools: Many[MessageToolIn] | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: Annotated[
        Annotated[
            ThinkingEnabled | ThinkingDisabled | ThinkingAdaptive, Field(discriminator="type")
        ]
        | None,
        Field(description="By default the model does not think."),
    ] = None
    output_config: OutputConfig | None = None
    output_format: Annotated[
        OutputFormat | None, Field(description="The earlier name of output_config.format.")
    ] = None
    image_tokens: Annotated[
        int | None, option_field("image_tokens", "Not in Anthropic's API.", le=1_000_000)
    ] = None
    thread: Annotated[
        Any, Field(description="Refused: this server keeps no threads. Send all messages.")
    ] = None


class MessageRequest(WithoutForeignFields, CountRequest):
    """A conversation to answer. The fields that Anthropic's API lacks say so."""

    instead: ClassVar = instead(
        length="max_tokens", stop="stop_sequences", form="output_config.format"
    )

    max_tokens: MaxTokens = None
    stop_sequences: Annotated[Many[str] | None, Field(max_length=16)] = None
    stream: bool | None = None
    temperature: Annotated[float | None, option_field("temperature", le=2)] = None
    top_p: Annotated[float | None, option_field("top_p", "0 is greedy.", ge=0)] = None
    top_k: Annotated[int | None, option_field("top_k", le=1_000_000)] = None
    metadata: Annotated[Any, Field(description="Accepted and ignored.")] = None
    seed: Annotated[
        int | None,
        Field(
            description="The same one gives the same tokens; -1 is a random one. Not in "
            "Anthropic's API."
        ),
    ] = None
