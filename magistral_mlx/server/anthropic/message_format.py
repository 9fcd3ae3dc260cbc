"""Formatter of messages: blocks as the events of a stream, and as a whole message."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from magistral_mlx.events import Event, Finished, Prefill, Stats
from magistral_mlx.server.anthropic.response_schemas import (
    AnthropicMessage,
    BlockOut,
    DeltaOut,
    MessageEvent,
    MessageOutputDetails,
    MessageUsage,
    StopReason,
    TextBlockOut,
    ThinkingBlockOut,
    ToolUseBlockOut,
)
from magistral_mlx.server.blocks import (
    BlockDelta,
    BlockEnd,
    BlockEvent,
    BlockStart,
    OutputBlock,
    SampleEnd,
    SampleOutput,
    SampleStart,
    read_blocks,
)
from magistral_mlx.server.shared_fields import new_id, progress_of, timings_of


@dataclass
class MessageFormatter:
    """Formats one answer.

    context: the model's, in tokens. names: the tools' own names, by those in the prompt.
    """

    model: str
    context: int
    names: Mapping[str, str] = field(default_factory=dict)

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[MessageEvent]:
        """All events of a stream."""
        async for event in read_blocks(events, self.names):
            for sent in self.write(event):
                yield sent

    def write(self, event: BlockEvent) -> Iterator[MessageEvent]:
        """The events for the next block event."""
        match event:
            case SampleStart(_, tokens):
                yield MessageEvent(type="message_start", message=self._start(tokens))
            case Prefill(done, total) if done < total:
                yield MessageEvent(type="ping", progress=progress_of(event))
            case BlockStart(block):
                start = _block(block, begun=True)
                yield MessageEvent(
                    type="content_block_start", index=block.index, content_block=start
                )
            case BlockDelta(block, text):
                yield _delta_event(block, _delta(block, text))
            case BlockEnd(block):
                if block.kind == "thinking":
                    signature = DeltaOut(type="signature_delta", signature=signature_of(block.text))
                    yield _delta_event(block, signature)
                yield MessageEvent(type="content_block_stop", index=block.index)
            case SampleEnd(sample):
                yield self._end(sample)
                yield MessageEvent(type="message_stop")

    def whole(self, sample: SampleOutput) -> AnthropicMessage:
        """The answer as a whole message."""
        reason, sequence = stop_reason(sample.finished, sample.called, self.context)
        more = {"notes": sample.notes} if sample.notes else {}
        return self._message(
            content=[_block(block) for block in sample.blocks],
            stop_reason=reason,
            stop_sequence=sequence,
            usage=_usage(sample.stats),
            timings=timings_of(sample.stats),
            **more,
        )

    def _start(self, tokens: int) -> AnthropicMessage:
        """The message without content; the prompt has so many tokens."""
        usage = MessageUsage(
            input_tokens=tokens,
            output_tokens=0,
            cache_read_input_tokens=0,
            cache_creation_input_tokens=0,
        )
        return self._message(content=[], stop_reason=None, stop_sequence=None, usage=usage)

    def _message(self, **fields: Any) -> AnthropicMessage:
        return AnthropicMessage(
            id=new_id("msg_"), type="message", role="assistant", model=self.model, **fields
        )

    def _end(self, sample: SampleOutput) -> MessageEvent:
        reason, sequence = stop_reason(sample.finished, sample.called, self.context)
        more: dict[str, Any] = {"notes": sample.notes} if sample.notes else {}
        return MessageEvent(
            type="message_delta",
            delta=DeltaOut(stop_reason=reason, stop_sequence=sequence),
            usage=_usage(sample.stats),
            timings=timings_of(sample.stats),
            **more,
        )


def stop_reason(end: Finished, called: bool, context: int) -> tuple[StopReason, str | None]:
    """Anthropic's word for an end, and the stop sequence that made it."""
    if end.stopped_by is not None:
        return "stop_sequence", end.stopped_by
    if end.reason == "stop":
        return ("tool_use" if called else "end_turn"), None
    full = end.stats.prompt_tokens + end.stats.completion_tokens >= context
    return ("model_context_window_exceeded" if full else "max_tokens"), None


def signature_of(thinking: str) -> str:
    """A checksum of the thinking. Clients want a signature to send back."""
    return hashlib.sha256(thinking.encode("utf-8", "replace")).hexdigest()


def _block(block: OutputBlock, *, begun: bool = False) -> BlockOut:
    """The whole block; `begun`: without its content."""
    text = "" if begun else block.text
    if block.kind == "text":
        return TextBlockOut(type="text", text=text)
    if block.kind == "thinking":
        signature = "" if begun else signature_of(text)
        return ThinkingBlockOut(type="thinking", thinking=text, signature=signature)
    return ToolUseBlockOut(type="tool_use", id=block.id, name=block.name, input=_input(text))


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; of one that was cut short, as far as they go."""
    try:
        found = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:  # the model wrote no JSON
        return {}
    return found if isinstance(found, dict) else {}


def _delta(block: OutputBlock, text: str) -> DeltaOut:
    if block.kind == "text":
        return DeltaOut(type="text_delta", text=text)
    if block.kind == "thinking":
        return DeltaOut(type="thinking_delta", thinking=text)
    return DeltaOut(type="input_json_delta", partial_json=text)


def _delta_event(block: OutputBlock, delta: DeltaOut) -> MessageEvent:
    return MessageEvent(type="content_block_delta", index=block.index, delta=delta)


def _usage(stats: Stats) -> MessageUsage:
    return MessageUsage(
        input_tokens=stats.prompt_tokens - stats.cached_tokens,
        output_tokens=stats.completion_tokens,
        cache_read_input_tokens=stats.cached_tokens,
        cache_creation_input_tokens=0,
        output_tokens_details=MessageOutputDetails(thinking_tokens=stats.thinking_tokens),
    )
