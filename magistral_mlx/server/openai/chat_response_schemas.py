"""Chat completions, whole and in chunks. A field that was not set is left out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from magistral_mlx.server.openai.usage import ChatLogprobs, ChatUsage
from magistral_mlx.server.shared_fields import (
    GenerationTimings,
    Notes,
    PromptProgress,
    ServerTimings,
)

FinishReason = Literal["stop", "length", "tool_calls"]
TokenIdsOut = Annotated[list[int], Field(description="Where return_token_ids asks for them.")]
ReasoningContent = Annotated[str, Field(description="The thinking, as far as there is any.")]


class TextChunk(BaseModel):
    type: Literal["text"] = "text"
    text: str


class ThinkingChunk(BaseModel):
    """A piece of thinking, in Mistral's style."""

    type: Literal["thinking"] = "thinking"
    thinking: list[TextChunk]


ChatContent = str | list[TextChunk | ThinkingChunk] | None


class FunctionCallOut(BaseModel):
    """A function's name and its arguments, as JSON text."""

    name: str
    arguments: str


class ToolCallOut(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCallOut


class ChatMessageOut(BaseModel):
    """The model's turn. It can go back as it is into the next request's messages."""

    role: Literal["assistant"] = "assistant"
    content: ChatContent
    reasoning_content: ReasoningContent = ""
    refusal: None = None
    tool_calls: list[ToolCallOut] = []


class ChatChoice(BaseModel):
    index: int
    message: ChatMessageOut
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    seed: Annotated[int, Field(description="It gives this answer again. Not in OpenAI's API.")]
    timings: GenerationTimings
    token_ids: TokenIdsOut = []
    notes: Notes = []


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage
    timings: ServerTimings
    prompt_token_ids: TokenIdsOut = []
    system_fingerprint: str


class FunctionCallDelta(BaseModel):
    name: str = ""
    arguments: str


class ToolCallDelta(BaseModel):
    """A piece of a call: the first has the id and the name, the others more of the arguments."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCallDelta


class ChatDelta(BaseModel):
    """New content since the last chunk."""

    role: Literal["assistant"] = "assistant"
    content: ChatContent = None
    reasoning_content: ReasoningContent = ""
    tool_calls: list[ToolCallDelta] = []


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None
    logprobs: ChatLogprobs | None
    seed: int = 0
    timings: GenerationTimings | None = None
    token_ids: TokenIdsOut = []
    notes: Notes = []


class ChatChunk(BaseModel):
    """A piece of a stream. Those with `progress` come during a long prefill."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: ChatUsage | None = None
    progress: PromptProgress | None = None
    timings: ServerTimings | None = None
    prompt_token_ids: TokenIdsOut = []
