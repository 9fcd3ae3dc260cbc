"""Events of a generation, in the order in which they happen.

The command line prints them, the server streams them, applications show them. They hold no MLX
arrays, so they may cross threads.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "memory", "time", "cancelled"]
Forced = Literal["budget", "loop"]  # why the engine forced a token, to close the trace
ThinkingEnd = Literal["model", "budget", "loop"]  # what ended the trace


@dataclass(frozen=True, slots=True)
class Prefill:
    """Progress through the prompt: `done` of `total` tokens are in the cache.

    `seconds_left` is an estimate; None before there is a basis for one.
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

    `tokens` is the length of the trace so far, including this piece.
    """

    text: str
    tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer. Pieces never split a character."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete tool call: name and arguments as the model wrote them (JSON)."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A piece of a tool call's arguments while they are generated; the first piece is empty.

    The complete call follows as `ToolCall`, or as `MalformedCall` if it is invalid. `index` counts
    the calls of an answer.
    """

    index: int
    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """An invalid tool call: the text that the model wrote, and the problem with it."""

    text: str
    problem: str


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts and times of one generation. Times are in seconds, memory in bytes.

    prefill_seconds: time spent on this prompt. first_token_seconds, decode_seconds: elapsed time,
    in which other requests may have been processed as well.
    thinking_end: what ended the trace; None if there was none, or it is still open.
    mask_seconds: host time of a grammar, mostly overlapped with the device.
    cached_tokens: tokens of the prompt that came from the prefix cache.
    passes: decoding passes over the weights, perhaps shared with other requests. drafted: draft
    tokens verified in them. accepted: draft tokens accepted.
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
        """Generated tokens, including thinking and end marks."""
        return self.thinking_tokens + self.answer_tokens

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens computed per second; 0 if none were computed."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decoding speed after the first token, which belongs to the prefill."""
        steps = self.completion_tokens - 1
        return steps / self.decode_seconds if steps > 0 and self.decode_seconds else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens per decoding pass, without the first token; 1 without speculation."""
        return (self.completion_tokens - 1) / self.passes if self.passes else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Return all fields and derived figures as JSON types."""
        return asdict(self) | {
            "completion_tokens": self.completion_tokens,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "tokens_per_pass": self.tokens_per_pass,
        }


NOTHING = Stats(0, 0, 0, 0.0, 0.0, 0.0, 0)  # of a request that ended before it began


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generation, with its reason and statistics.

    `stopped_by` is the stop string that ended it; None if none did.
    """

    reason: FinishReason
    stats: Stats
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural log-probability before any filter; its text follows.

    token: its bytes, perhaps part of a character; empty for a control token. top: the most likely
    tokens, the most likely first. thinking: whether it is part of the thinking trace.
    """

    id: int
    token: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt, its bytes, and its log-probability as in `TokenLogprob`.

    logprob: None of the first token, which nothing predicts.
    """

    id: int
    token: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The prompt's tokens with their log-probabilities, once all of it has been prefilled."""

    tokens: tuple[PromptToken, ...]


@dataclass(frozen=True, slots=True)
class TurnsDropped:
    """The oldest turns were dropped because the conversation exceeded the context."""

    turns: int
    messages: int


@dataclass(frozen=True, slots=True)
class Notice:
    """A message for the user that is not an error, as a sentence."""

    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Start of the events of answer `index`, if several answers to one prompt are requested."""

    index: int


Event = (
    Prefill
    | Thinking
    | Text
    | ToolCallPart
    | ToolCall
    | MalformedCall
    | TokenLogprob
    | PromptLogprobs
    | TurnsDropped
    | Notice
    | Sample
    | Finished
)
"""Anything that a stream yields."""
