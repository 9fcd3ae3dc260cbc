"""Answers as messages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from magistral_mlx.events import Finished, Stats
from magistral_mlx.server.answers import Answer
from magistral_mlx.server.anthropic.answer_schemas import (
    AnthropicMessage,
    BlockOut,
    MessageOutputDetails,
    MessageUsage,
    StopReason,
    TextBlockOut,
    ThinkingBlockOut,
    ToolUseBlockOut,
)
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.figures import new_id, timings_of


def message_of(exchange: Exchange, answer: Answer, context: int) -> AnthropicMessage:
    """The answer as a whole message. `context`: the model's, in tokens."""
    assert answer.end is not None
    stop_reason, stop_sequence = stopped(answer.end, bool(answer.calls), context)
    message = AnthropicMessage(
        id=new_id("msg_"),
        type="message",
        role="assistant",
        model=exchange.model,
        content=_blocks(answer),
        stop_reason=stop_reason,
        stop_sequence=stop_sequence,
        usage=usage_of(answer.stats),
        timings=timings_of(answer.stats),
    )
    if answer.notes:
        message.notes = answer.notes
    return message


def stopped(end: Finished, called: bool, context: int) -> tuple[StopReason, str | None]:
    """Anthropic's word for an end, and the stop sequence that made it."""
    if end.stopped_by is not None:
        return "stop_sequence", end.stopped_by
    if end.reason == "stop":
        return ("tool_use" if called else "end_turn"), None
    full = end.stats.prompt_tokens + end.stats.completion_tokens >= context
    return ("model_context_window_exceeded" if full else "max_tokens"), None


def usage_of(stats: Stats) -> MessageUsage:
    return MessageUsage(
        input_tokens=stats.prompt_tokens - stats.cached_tokens,
        output_tokens=stats.completion_tokens,
        cache_read_input_tokens=stats.cached_tokens,
        cache_creation_input_tokens=0,
        output_tokens_details=MessageOutputDetails(thinking_tokens=stats.thinking_tokens),
    )


def signature_of(pieces: Iterable[str]) -> str:
    """Of the thinking in these pieces. Clients want one to send back."""
    return hashlib.sha256("".join(pieces).encode("utf-8", "replace")).hexdigest()


def _blocks(answer: Answer) -> list[BlockOut]:
    blocks: list[BlockOut] = []
    if answer.thinking:
        signature = signature_of([answer.thinking])
        blocks.append(
            ThinkingBlockOut(type="thinking", thinking=answer.thinking, signature=signature)
        )
    if answer.text:
        blocks.append(TextBlockOut(type="text", text=answer.text))
    for call in answer.calls:
        arguments = json.loads(call.arguments)
        blocks.append(
            ToolUseBlockOut(type="tool_use", id=call.id or "", name=call.name, input=arguments)
        )
    return blocks
