"""Conversations as clients send them, in the form that the template has: system prompts first, and
no turn of the model without content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from magistral_mlx.chat.messages import Assistant, Message, System, Thought, ToolResult, User
from magistral_mlx.events import ToolCall


def normalized(conversation: Sequence[Message]) -> list[Message]:
    """`conversation` with late system messages as users' turns, and without empty turns.

    The template has one system prompt, at the front. A system message after the first turn becomes
    text of a user's turn at its place, so that the prompt before it stays as it was and its cached
    prefix is used again; the template joins neighbouring users' turns.

    One between calls and their results follows the results. Blank thinking counts as none, and so
    does a call that was cut short and has no result. A turn of the model with neither thinking,
    text nor calls is left out, also as the last message.
    """
    return list(_normalized(conversation))


def _normalized(conversation: Sequence[Message]) -> Iterator[Message]:
    begun = False  # whether a turn has come
    unanswered = 0  # calls without a result so far
    late: list[User] = []  # system messages that wait for results
    for n, message in enumerate(conversation):
        match message:
            case System() if begun:
                if text := _text_of(message).strip():
                    late.append(User(text))
            case Assistant():
                message = _cleaned(message, answered=_is_answered(conversation, n))
                unanswered = len(message.tool_calls)
            case ToolResult():
                unanswered -= 1
            case User():
                unanswered = 0
        if not isinstance(message, System | ToolResult):
            yield from late
            late = []
        if not _is_empty(message) and not (isinstance(message, System) and begun):
            begun = begun or not isinstance(message, System)
            yield message
        if unanswered <= 0:
            yield from late
            late = []
    yield from late


def _cleaned(message: Assistant, *, answered: bool) -> Assistant:
    """`message` without blank thinking, and without calls that were cut short unless answered."""
    if message.thinking is not None and not message.thinking.strip():
        message = replace(message, thinking=None)
    if answered or all(map(_is_whole, message.tool_calls)):
        return message
    return replace(message, tool_calls=tuple(filter(_is_whole, message.tool_calls)))


def _is_answered(conversation: Sequence[Message], n: int) -> bool:
    """Whether a tool's result comes after message `n`, but for system messages."""
    for following in range(n + 1, len(conversation)):
        if not isinstance(conversation[following], System):
            return isinstance(conversation[following], ToolResult)
    return False


def _is_empty(message: Message) -> bool:
    if not isinstance(message, Assistant) or message.tool_calls:
        return False
    return message.thinking is None and not message.text.strip()


def _is_whole(call: ToolCall) -> bool:
    try:
        return isinstance(json.loads(call.arguments or "{}"), dict)
    except (ValueError, RecursionError):
        return False


def _text_of(system: System) -> str:
    """The text of a system message, its thinking parts included."""
    if isinstance(system.content, str):
        return system.content
    return "\n\n".join(part.text if isinstance(part, Thought) else part for part in system.content)
