"""Whole answers out of events, and what is said of them in every API."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from magistral_mlx import __version__
from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Notice,
    Sample,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
    TurnsDropped,
)


class Answer:
    """One answer as far as it has come; `end` is set once it is whole.

    notes: what a person should know of it, a sentence each.
    """

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.notes: list[str] = []
        self.end: Finished | None = None
        self._thinking: list[str] = []
        self._text: list[str] = []

    def add(self, event: Event) -> None:
        """Take in the next event. A call that is none becomes text, so that nothing is lost."""
        match event:
            case Thinking(text):
                self._thinking.append(text)
            case Text(text) | MalformedCall(text):
                self._text.append(text)
            case ToolCall():
                self.calls.append(event)
            case TokenLogprob():
                self.logprobs.append(event)
            case Finished():
                self.end = event
        note = note_of(event)
        if note:
            self.notes.append(note)

    @property
    def thinking(self) -> str:
        return "".join(self._thinking)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def stats(self) -> Stats:
        assert self.end is not None
        return self.end.stats


async def whole_answers(events: AsyncIterator[Event]) -> list[Answer]:
    """Read to the end -> the answers, one or as many as were asked for.

    Raises:
        MagistralError: what went wrong while they were generated.
    """
    answers = [Answer()]
    async for event in events:
        if isinstance(event, Sample):
            if event.index:
                answers.append(Answer())
        else:
            answers[-1].add(event)
    return [answer for answer in answers if answer.end is not None]


def note_of(event: Event) -> str | None:
    """What a person should know, where an event tells something."""
    match event:
        case Notice(text):
            return text
        case TurnsDropped(turns):
            return f"The oldest {turns} turns were left out: the context could not hold them."
        case MalformedCall(_, problem):
            return f"What the model wrote as a tool call is none: {problem}."
        case Finished("memory"):
            return "The answer was ended: there is no memory for a longer one."
        case Finished("cancelled"):
            return "The answer was stopped by the server."
    return None


def fingerprint(model: str) -> str:
    """What makes answers to one seed the same: the version and the model."""
    return "mlx_" + hashlib.sha256(f"{__version__} {model}".encode()).hexdigest()[:10]
