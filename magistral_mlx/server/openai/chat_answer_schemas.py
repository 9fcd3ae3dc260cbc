"""Chat completions, whole and in chunks. A field that was not set is left out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from magistral_mlx.server.figures import Notes, Progress, Timings
from magistral_mlx.server.openai.figures import Logprobs, Usage

FinishReason = Literal["stop", "length", "tool_calls"]
Reasoning = Annotated[str, Field(description="The thinking, as far as there is any.")]


class TextChunk(BaseModel):
    type: Literal["text"] = "text"
    text: str


class ThinkingChunk(BaseModel):
    """A piece of thinking, in Mistral's style."""

    type: Literal["thinking"] = "thinking"
    thinking: list[TextChunk]


Content = str | list[TextChunk | ThinkingChunk] | None


class Called(BaseModel):
    """A function's name and its arguments, as JSON text."""

    name: str
    arguments: str


class CallOut(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: Called


class Message(BaseModel):
    """The model's turn. It can go back as it is into the next request's messages."""

    role: Literal["assistant"] = "assistant"
    content: Content
    reasoning_content: Reasoning = ""
    refusal: None = None
    tool_calls: list[CallOut] = []


class Choice(BaseModel):
    index: int
    message: Message
    finish_reason: FinishReason
    logprobs: Logprobs | None
    seed: Annotated[int, Field(description="It gives this answer again. Not in OpenAI's API.")]
    timings: Timings
    notes: Notes = []


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str


class CalledPart(BaseModel):
    name: str = ""
    arguments: str


class CallPart(BaseModel):
    """A piece of a call: the first has the id and the name, the others more of the arguments."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: CalledPart


class Delta(BaseModel):
    """What has come since the last chunk."""

    role: Literal["assistant"] = "assistant"
    content: Content = None
    reasoning_content: Reasoning = ""
    tool_calls: list[CallPart] = []


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None
    logprobs: Logprobs | None
    seed: int = 0
    timings: Timings | None = None
    notes: Notes = []


class ChatChunk(BaseModel):
    """A piece of a stream. Those with `progress` tell that the prompt is still being read."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | None = None
    progress: Progress | None = None
