"""What a generation yields, in the order in which it happens.

The command line prints these, a server streams them, an app shows them. None of them holds an MLX
array, so they may cross threads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "memory", "cancelled"]
Forced = Literal["budget", "loop"]  # why the engine put a token itself: it closed the trace
ThinkingEnd = Literal["model", "budget", "loop"]  # who ended the trace: the model, or we and why


@dataclass(frozen=True, slots=True)
class Prefill:
    """Progress through the prompt: `done` of `total` tokens are in the cache.

    `seconds_left` is an estimate; None before there is anything to estimate from.
    """

    done: int
    total: int
    seconds_left: float | None = None

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 1.0


@dataclass(frozen=True, slots=True)
class Thinking:
    """A piece of the thinking trace. Pieces never split a character.

    `tokens` are those of the trace so far, this piece's among them.
    """

    text: str
    tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer. Pieces never split a character."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A finished call to a tool: its name and its arguments as the model wrote them (JSON)."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A piece of a call's arguments as they are written; the first piece is empty.

    The whole call follows as `ToolCall`, or as `MalformedCall` if it turns out to be none. `index`
    counts the calls of an answer.
    """

    index: int
    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """What the model wrote as a call that is none, and why not."""

    text: str
    problem: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts and times of one generation. Times are in seconds, memory in bytes.

    prefill_seconds are those that went into this prompt; first_token_seconds and decode_seconds are
    those that passed, while other answers may have had their turn as well.
    thinking_end tells how the trace ended; None if there was none, or it is still open.
    mask_seconds is what a grammar cost on the host, most of it while the device works.
    cached_tokens are those of the prompt that an earlier one had left in the caches.
    passes is how often the weights were read after the prompt, perhaps for other answers as well;
    drafted is how many tokens were guessed and checked in them, accepted how many were right.
    """

    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int
    prefill_seconds: float
    decode_seconds: float
    first_token_seconds: float
    peak_memory: int
    thinking_end: ThinkingEnd | None = None
    mask_seconds: float = 0.0
    cached_tokens: int = 0
    passes: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def completion_tokens(self) -> int:
        """Tokens that the model produced, the thinking and the end marks included."""
        return self.thinking_tokens + self.answer_tokens

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of the prompt that were read, over the time that took; 0 where none was."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Speed after the first token, which the prefill pays for."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """After the first token, which the prompt's pass gives; 1 without speculation."""
        return (self.completion_tokens - 1) / self.passes if self.passes else 1.0

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON types, derived ones included."""
        return asdict(self) | {
            "completion_tokens": self.completion_tokens,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "tokens_per_pass": self.tokens_per_pass,
        }


NOTHING = Stats(0, 0, 0, 0.0, 0.0, 0.0, 0)  # of an answer that ended before it began


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generation: why it ended, and its figures.

    `stopped_by` is the stop text that ended it; None if none did.
    """

    reason: FinishReason
    stats: Stats
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural log probability before any filter, ahead of its text.

    `token` is its bytes, part of a character perhaps, and none for a control token. `top` holds
    the likeliest ones, likeliest first. `thinking` tells on which side of the mark it stands.
    """

    id: int
    token: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class TurnsDropped:
    """The oldest turns were left out, as the conversation outgrew its context."""

    turns: int
    messages: int


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that is no error, in a sentence for a person."""

    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Where several answers to one prompt are asked for: the events of answer `index` follow."""

    index: int


Event = (
    Prefill
    | Thinking
    | Text
    | ToolCallPart
    | ToolCall
    | MalformedCall
    | TokenLogprob
    | TurnsDropped
    | Notice
    | Sample
    | Finished
)
"""Anything that a stream yields."""
