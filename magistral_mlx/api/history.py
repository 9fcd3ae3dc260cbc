"""Rewriting of a conversation's messages before they are sent. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from magistral_mlx.chat.messages import (
    Assistant,
    Image,
    Message,
    System,
    Thought,
    ToolResult,
    User,
)
from magistral_mlx.chat.system import without_thinking


def with_system(messages: Sequence[Message], system: System | None) -> list[Message]:
    """`messages` with `system` first, unless they hold a system prompt of their own."""
    if system is None or any(isinstance(message, System) for message in messages):
        return list(messages)
    return [system, *messages]


def asking_for_thinking(messages: Sequence[Message], own: System | None) -> list[Message]:
    """`messages` with what `own` says before their first system prompt, if none asks for thinking.

    `own` is the checkpoint's own system prompt. One that asks for thinking has a part that shows
    it; where `own` has none, nothing is changed.
    """
    systems = [n for n, message in enumerate(messages) if isinstance(message, System)]
    asked = any(_asks_for_thinking(messages[n]) for n in systems)
    if not systems or asked or own is None or not _asks_for_thinking(own):
        return list(messages)
    first = systems[0]
    both = System((*_parts(own), *_parts(messages[first])))
    return [*messages[:first], both, *messages[first + 1 :]]


def without_thinking_in_system(messages: Sequence[Message]) -> list[Message]:
    """`messages` with system prompts that do not ask for thinking."""
    changed = [
        without_thinking(message) if isinstance(message, System) else message
        for message in messages
    ]
    return [message for message in changed if message is not None]


def without_earlier_thinking(messages: Sequence[Message]) -> list[Message]:
    """`messages` without the thinking of turns before the last one.

    Within the last turn it stays: between a tool's call and its result the model goes on with the
    same thought. An answer that was nothing but thinking goes with it.
    """
    start = last_turn(messages)
    kept: list[Message] = []
    for n, message in enumerate(messages):
        if n < start and isinstance(message, Assistant) and message.thinking is not None:
            message = replace(message, thinking=None)
            if not message.text and not message.tool_calls:
                continue
        kept.append(message)
    return kept


def last_turn(messages: Sequence[Message]) -> int:
    """Where the last turn begins: at the last user's message, or at the end if there is none."""
    starts = turn_starts(messages)
    return starts[-1] if starts else len(messages)


def turn_starts(messages: Sequence[Message]) -> list[int]:
    """Where each turn begins: at a user's message that follows something else."""
    return [
        n
        for n, message in enumerate(messages)
        if isinstance(message, User) and (n == 0 or not isinstance(messages[n - 1], User))
    ]


def without_oldest(messages: Sequence[Message], turns: int) -> list[Message]:
    """`messages` without the first `turns` turns; system prompts stay, wherever they are."""
    if turns == 0:
        return list(messages)
    starts = turn_starts(messages)
    end = starts[turns] if turns < len(starts) else len(messages)
    return [m for n, m in enumerate(messages) if n >= end or isinstance(m, System)]


def open_ended(messages: Sequence[Message]) -> list[Message]:
    """`messages` so that they make a prompt although nothing in them is to be answered."""
    last = messages[-1]
    if not isinstance(last, Assistant):
        return list(messages)
    if last.tool_calls:
        return [*messages, *(ToolResult("") for _ in last.tool_calls)]
    return [*messages[:-1], replace(last, prefix=True)]


def continued(first: Assistant, rest: Assistant) -> Assistant:
    """An answer that was cut short, with what came when it was resumed."""
    thinking = (first.thinking or "") + (rest.thinking or "")
    return Assistant(first.text + rest.text, thinking or None, rest.tool_calls, prefix=rest.prefix)


def attached_to(user: User) -> list[str | Image]:
    """The images of a user's message, and the texts before its last one, such as documents."""
    parts = (user.content,) if isinstance(user.content, str) else user.content
    texts = [n for n, part in enumerate(parts) if isinstance(part, str)]
    return [part for n, part in enumerate(parts) if not texts or n != texts[-1]]


def typed_in(user: User) -> str:
    """The last text of a user's message: what is not attached to it."""
    parts = (user.content,) if isinstance(user.content, str) else user.content
    return next((part for part in reversed(parts) if isinstance(part, str)), "")


def _asks_for_thinking(message: Message) -> bool:
    return any(isinstance(part, Thought) for part in _parts(message))


def _parts(message: Message) -> tuple[str | Thought, ...]:
    """Of a system prompt."""
    assert isinstance(message, System)
    return (message.content,) if isinstance(message.content, str) else message.content
