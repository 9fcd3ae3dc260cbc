"""Events as the chunks of a chat completion."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from sse_starlette import ServerSentEvent

from magistral_mlx.api.options import nth_seed
from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Prefill,
    Sample,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
    ToolCallPart,
)
from magistral_mlx.server.answers import fingerprint, note_of
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.failures import failure_of
from magistral_mlx.server.figures import new_id, progress_of, timings_of
from magistral_mlx.server.openai.chat_answer import finish_reason, thinking_chunk
from magistral_mlx.server.openai.chat_answer_schemas import (
    CalledPart,
    CallPart,
    ChatChunk,
    ChunkChoice,
    Delta,
)
from magistral_mlx.server.openai.figures import logprobs_of, usage_of
from magistral_mlx.server.sse import data

DONE = "[DONE]"


class ChatStream:
    """The state of a stream between its events."""

    def __init__(
        self, exchange: Exchange, *, seed: int, logprobs: bool, mistral: bool, usage: bool
    ) -> None:
        """See `chat_completion`. `usage`: end with a chunk that tells it."""
        self._head: dict[str, Any] = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": exchange.created,
            "model": exchange.model,
            "system_fingerprint": fingerprint(exchange.model),
        }
        if usage:
            self._head["usage"] = None
        self._seed = seed
        self._wants_logprobs = logprobs
        self._mistral = mistral
        self._usage = usage
        self._stats: list[Stats] = []
        self._begin(0)

    async def write(self, events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
        """All of the stream. What goes wrong on the way becomes an event that clients raise."""
        try:
            async for event in events:
                for chunk in self.chunks(event):
                    yield data(chunk)
            if self._usage:
                yield data(self._chunk([], usage=usage_of(self._stats)))
        except Exception as error:
            yield error_event(error)
        yield data(DONE)

    def chunks(self, event: Event) -> list[ChatChunk]:
        """What is sent for the next event."""
        note = note_of(event)
        if note:
            self._notes.append(note)
        match event:
            case Sample(index):
                self._begin(index)
                return []
            case TokenLogprob():
                self._logprobs.append(event)
                return []
            case Prefill():
                return [*self._first(), *self._beat(event)]
            case Finished():
                return [*self._first(), self._last(event)]
        delta = self._delta(event)
        return [] if delta is None else [*self._first(), self._chunk([self._choice(delta)])]

    def _begin(self, index: int) -> None:
        self._index = index
        self._begun = False
        self._calls: set[int] = set()  # those of which a part has been sent
        self._finished_calls = 0
        self._called = False
        self._logprobs: list[TokenLogprob] = []
        self._notes: list[str] = []

    def _first(self) -> list[ChatChunk]:
        """The role, before anything else of an answer."""
        if self._begun:
            return []
        self._begun = True
        return [self._chunk([self._choice(Delta(role="assistant", content=""), logprobs=False)])]

    def _beat(self, event: Prefill) -> list[ChatChunk]:
        """Nobody waits in the dark for a long prompt, nor hangs up."""
        if event.done >= event.total:
            return []
        beat = self._choice(Delta(), logprobs=False)
        return [self._chunk([beat], progress=progress_of(event))]

    def _delta(self, event: Event) -> Delta | None:
        match event:
            case Thinking(text):
                if self._mistral:
                    return Delta(content=[thinking_chunk(text)])
                return Delta(reasoning_content=text)
            case Text(text):
                return Delta(content=text)
            case ToolCallPart():
                return Delta(tool_calls=[self._part(event)])
            case ToolCall():
                index, self._finished_calls = self._finished_calls, self._finished_calls + 1
                self._called = True
                if index in self._calls:
                    return None
                part = ToolCallPart(index, event.name, event.arguments, event.id)
                return Delta(tool_calls=[self._part(part)])
            case MalformedCall(text):
                index, self._finished_calls = self._finished_calls, self._finished_calls + 1
                return None if index in self._calls else Delta(content=text)
        return None

    def _part(self, part: ToolCallPart) -> CallPart:
        if part.index in self._calls:
            return CallPart(index=part.index, function=CalledPart(arguments=part.arguments))
        self._calls.add(part.index)
        return CallPart(
            index=part.index,
            id=part.id or "",
            type="function",
            function=CalledPart(name=part.name, arguments=part.arguments),
        )

    def _last(self, end: Finished) -> ChatChunk:
        self._stats.append(end.stats)
        choice = self._choice(Delta())
        choice.finish_reason = finish_reason(end, self._called)
        choice.seed = nth_seed(self._seed, self._index)
        choice.timings = timings_of(end.stats)
        if self._notes:
            choice.notes = self._notes
        return self._chunk([choice])

    def _choice(self, delta: Delta, *, logprobs: bool = True) -> ChunkChoice:
        """With the log probabilities that have gathered since the last one."""
        found = None
        if self._wants_logprobs and logprobs and self._logprobs:
            found = logprobs_of(self._logprobs)
            self._logprobs = []
        return ChunkChoice(index=self._index, delta=delta, finish_reason=None, logprobs=found)

    def _chunk(self, choices: list[ChunkChoice], **more: Any) -> ChatChunk:
        return ChatChunk(choices=choices, **(self._head | more))


def error_event(error: Exception) -> ServerSentEvent:
    """What went wrong after the stream had begun, as OpenAI's clients expect it."""
    return data(json.dumps(failure_of(error).openai(), ensure_ascii=False))
