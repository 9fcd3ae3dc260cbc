"""Schemas of messages and of the events of their streams. An unset field is left out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from magistral_mlx.server.shared_fields import GenerationTimings, Notes, PromptProgress

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class TextBlockOut(BaseModel):
    type: Literal["text"] = "text"
    text: str


class ThinkingBlockOut(BaseModel):
    """The thinking. Its signature is a checksum: clients send it back, and nobody checks it."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class ToolUseBlockOut(BaseModel):
    """A call to a tool."""

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


BlockOut = Annotated[TextBlockOut | ThinkingBlockOut | ToolUseBlockOut, Field(discriminator="type")]


class MessageOutputDetails(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    """Tokens; input_tokens are those that were not in the cache already."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens_details: MessageOutputDetails | None = None


class AnthropicMessage(BaseModel):
    """The model's turn."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[BlockOut]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage
    timings: Annotated[GenerationTimings | None, Field(description="Not in Anthropic's API.")] = (
        None
    )
    notes: Notes = []


class DeltaOut(BaseModel):
    """More of a block, or how the message ended."""

    type: Literal["text_delta", "thinking_delta", "signature_delta", "input_json_delta"] | None = (
        None
    )
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None


class MessageEvent(BaseModel):
    """An event of a stream. Its type says which of the fields it has; its name is the type.

    `ping` comes with `progress` during a long prefill.
    """

    type: Literal[
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    ]
    message: AnthropicMessage | None = None
    index: int = 0
    content_block: BlockOut | None = None
    delta: DeltaOut | None = None
    usage: MessageUsage | None = None
    error: dict[str, str] | None = None
    progress: PromptProgress | None = None
    timings: GenerationTimings | None = None
    notes: Notes = []


class TokenCount(BaseModel):
    """Tokens of a request's prompt."""

    input_tokens: int
