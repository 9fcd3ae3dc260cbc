"""Results: whole answers, and how they are accumulated from events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from magistral_mlx.chat.messages import Assistant
from magistral_mlx.errors import AnswerError
from magistral_mlx.events import (
    NOTHING,
    Event,
    Finished,
    FinishReason,
    MalformedCall,
    PromptLogprobs,
    PromptToken,
    Sample,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
    TurnsDropped,
)
from magistral_mlx.runtime.generation_request import nth_seed

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer. `completion_tokens` are thinking and answer together."""

    prompt_tokens: int
    thinking_tokens: int
    answer_tokens: int

    @property
    def completion_tokens(self) -> int:
        """Thinking and answer together."""
        return self.thinking_tokens + self.answer_tokens

    @property
    def total_tokens(self) -> int:
        """Prompt, thinking and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Times of one answer, in seconds, and the speeds that follow from them."""

    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class Result:
    """A whole answer.

    `thinking` and `text` are "" where there is none. `tool_calls` are to be answered with
    `ToolResult`s; `malformed_calls` were meant as calls and are none. `dropped` tells which turns
    did not fit in the context, where overflow is "drop". `samples` holds all answers where several
    were asked for; this is the first of them. `seed` gives the same answer again. `answer_type` is
    the pydantic class that was asked for.
    """

    thinking: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason | None
    stats: Stats
    seed: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[PromptToken, ...] = ()
    dropped: TurnsDropped | None = None
    malformed_calls: tuple[MalformedCall, ...] = ()
    samples: tuple[Result, ...] = field(default=(), repr=False)
    answer_type: type[BaseModel] | None = field(default=None, repr=False)

    @property
    def parsed(self) -> Any:
        """The answer as an instance of the pydantic class that `json_schema` was.

        None where it was none, and where the model calls tools instead of answering.

        Raises:
            AnswerError: the answer was cut short, or a validator of the class refuses it.
        """
        if self.answer_type is None or self.tool_calls:
            return None
        from pydantic import ValidationError

        try:
            return self.answer_type.model_validate_json(self.text)
        except ValidationError as error:
            name, (first, *_) = self.answer_type.__name__, error.errors()
            where = ".".join(map(str, first["loc"])) or "all of it"
            cut = "" if self.finish_reason == "stop" else f" It was cut ({self.finish_reason})."
            raise AnswerError(
                f"the answer is no {name}: {first['msg']} ({where}).{cut} Ask again, perhaps with "
                "more max_tokens."
            ) from error

    @property
    def usage(self) -> Usage:
        """Tokens of the prompt, of the thinking and of the answer."""
        stats = self.stats
        return Usage(stats.prompt_tokens, stats.thinking_tokens, stats.answer_tokens)

    @property
    def timings(self) -> Timings:
        """Seconds, and tokens a second."""
        stats = self.stats
        return Timings(
            stats.prefill_seconds,
            stats.first_token_seconds,
            stats.decode_seconds,
            stats.prefill_tokens_per_second,
            stats.decode_tokens_per_second,
        )

    @property
    def message(self) -> Assistant:
        """The answer as a message, for the history of a conversation.

        One that was cut short is left open: as the last message it is continued, and anything
        after it closes it. A malformed call stands in its text, so that the model can see it.
        """
        text = self.text + "".join(call.text for call in self.malformed_calls)
        cut = (
            self.finish_reason in ("length", "memory", "time", "cancelled") and not self.tool_calls
        )
        return Assistant(text, self.thinking or None, self.tool_calls, prefix=cut)


class Collector:
    """Accumulates the events of one request into results, one for each sample."""

    def __init__(self, seed: int | None = None, answer_type: type[BaseModel] | None = None) -> None:
        """`seed`: of the first sample; each later one has the next."""
        self._seed, self._answer_type = seed, answer_type
        self._finished: list[Result] = []
        self._dropped: TurnsDropped | None = None
        self._prompt_logprobs: tuple[PromptToken, ...] = ()
        self._start()

    def add(self, event: Event) -> None:
        """Take in the next event."""
        match event:
            case Thinking(text):
                self._thinking.append(text)
            case Text(text):
                self._text.append(text)
            case ToolCall():
                self._calls.append(event)
            case MalformedCall():
                self._malformed.append(event)
            case TokenLogprob():
                self._logprobs.append(event)
            case PromptLogprobs(tokens):
                self._prompt_logprobs = tokens
            case TurnsDropped():
                self._dropped = event
            case Sample():
                self._start()
            case Finished(reason, stats):
                self._finished.append(self._present(reason, stats))
                self._open = False

    @property
    def result(self) -> Result | None:
        """The first sample, with all of them in it; None before the first has finished."""
        if not self._finished:
            return None
        first = self._finished[0]
        if len(self._finished) == 1:
            return first
        return replace(first, samples=tuple(self._finished))

    @property
    def finished(self) -> tuple[Result, ...]:
        """The results of the samples that have finished."""
        return tuple(self._finished)

    @property
    def results(self) -> tuple[Result, ...]:
        """Those that have finished, and the one that is being generated, as far as it goes."""
        return (*self._finished, self._present(None, NOTHING)) if self._open else self.finished

    def _start(self) -> None:
        self._open = True
        self._thinking: list[str] = []
        self._text: list[str] = []
        self._calls: list[ToolCall] = []
        self._malformed: list[MalformedCall] = []
        self._logprobs: list[TokenLogprob] = []

    def _present(self, reason: FinishReason | None, stats: Stats) -> Result:
        seed = self._seed
        return Result(
            thinking="".join(self._thinking),
            text="".join(self._text),
            tool_calls=tuple(self._calls),
            finish_reason=reason,
            stats=stats,
            seed=None if seed is None else nth_seed(seed, len(self._finished)),
            logprobs=tuple(self._logprobs),
            prompt_logprobs=self._prompt_logprobs,
            dropped=self._dropped,
            malformed_calls=tuple(self._malformed),
            answer_type=self._answer_type,
        )
