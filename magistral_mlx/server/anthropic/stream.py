"""Events as the events of a message's stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from sse_starlette import ServerSentEvent

from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Prefill,
    Text,
    Thinking,
    ToolCall,
    ToolCallPart,
)
from magistral_mlx.server.answers import note_of
from magistral_mlx.server.anthropic.answer import signature_of, stopped, usage_of
from magistral_mlx.server.anthropic.answer_schemas import (
    AnthropicMessage,
    DeltaOut,
    MessageEvent,
    MessageUsage,
    TextBlockOut,
    ThinkingBlockOut,
    ToolUseBlockOut,
)
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.failures import failure_of
from magistral_mlx.server.figures import new_id, progress_of, timings_of
from magistral_mlx.server.sse import data


class MessageStream:
    """The state of a stream between its events."""

    def __init__(self, exchange: Exchange, context: int) -> None:
        """`context`: the model's, in tokens."""
        self._model = exchange.model
        self._context = context
        self._started = False
        self._open: str | None = None  # the kind of the block that is being written
        self._index = 0
        self._thought: list[str] = []
        self._called = False
        self._notes: list[str] = []

    async def write(self, events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
        """All of the stream. What goes wrong on the way becomes an event that clients raise."""
        try:
            async for event in events:
                for sent in self.feed(event):
                    yield data(sent, sent.type)
        except Exception as error:
            yield data(MessageEvent(**failure_of(error).anthropic()), "error")

    def feed(self, event: Event) -> Iterator[MessageEvent]:
        """What is sent for the next event."""
        note = note_of(event)
        if note:
            self._notes.append(note)
        if not self._started:
            self._started = True
            yield self._start(event)
        match event:
            case Prefill(done, total) if done < total:
                yield MessageEvent(type="ping", progress=progress_of(event))
            case Thinking(text):
                yield from self._begin("thinking")
                self._thought.append(text)
                yield self._delta(DeltaOut(type="thinking_delta", thinking=text))
            case Text(text):
                yield from self._text(text)
            case ToolCallPart(_, name, arguments, id):
                yield from self._call(name, arguments, id)
            case ToolCall(name, arguments, id):
                self._called = True
                if self._open != "tool_use":
                    yield from self._call(name, arguments, id)
                yield from self._end()
            case MalformedCall(text):
                if self._open == "tool_use":
                    yield from self._end()
                else:
                    yield from self._text(text)
            case Finished():
                yield from self._finish(event)

    def _start(self, event: Event) -> MessageEvent:
        """The message without content. The first event tells how long the prompt is."""
        tokens = event.total if isinstance(event, Prefill) else 0
        message = AnthropicMessage(
            id=new_id("msg_"),
            type="message",
            role="assistant",
            model=self._model,
            content=[],
            stop_reason=None,
            stop_sequence=None,
            usage=MessageUsage(
                input_tokens=tokens,
                output_tokens=0,
                cache_read_input_tokens=0,
                cache_creation_input_tokens=0,
            ),
        )
        return MessageEvent(type="message_start", message=message)

    def _text(self, text: str) -> Iterator[MessageEvent]:
        yield from self._begin("text")
        yield self._delta(DeltaOut(type="text_delta", text=text))

    def _call(self, name: str, arguments: str, id: str | None) -> Iterator[MessageEvent]:
        yield from self._begin("tool_use", name=name, id=id or "")
        if arguments:
            yield self._delta(DeltaOut(type="input_json_delta", partial_json=arguments))

    def _begin(self, kind: str, **call: str) -> Iterator[MessageEvent]:
        """Open a block of that kind, unless one is open."""
        if self._open == kind:
            return
        yield from self._end()
        self._open = kind
        block: TextBlockOut | ThinkingBlockOut | ToolUseBlockOut
        if kind == "text":
            block = TextBlockOut(type="text", text="")
        elif kind == "thinking":
            block = ThinkingBlockOut(type="thinking", thinking="", signature="")
        else:
            block = ToolUseBlockOut(type="tool_use", input={}, **call)
        yield MessageEvent(type="content_block_start", index=self._index, content_block=block)

    def _end(self) -> Iterator[MessageEvent]:
        """Close the block that is open."""
        if self._open is None:
            return
        if self._open == "thinking":
            signature = signature_of(self._thought)
            yield self._delta(DeltaOut(type="signature_delta", signature=signature))
            self._thought.clear()
        yield MessageEvent(type="content_block_stop", index=self._index)
        self._index += 1
        self._open = None

    def _delta(self, delta: DeltaOut) -> MessageEvent:
        return MessageEvent(type="content_block_delta", index=self._index, delta=delta)

    def _finish(self, end: Finished) -> Iterator[MessageEvent]:
        yield from self._end()
        reason, sequence = stopped(end, self._called, self._context)
        more: dict[str, Any] = {"notes": self._notes} if self._notes else {}
        yield MessageEvent(
            type="message_delta",
            delta=DeltaOut(stop_reason=reason, stop_sequence=sequence),
            usage=usage_of(end.stats),
            timings=timings_of(end.stats),
            **more,
        )
        yield MessageEvent(type="message_stop")
