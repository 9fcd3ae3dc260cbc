"""One sample while it is generated: the engine's tokens as events, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from magistral_mlx.events import Event, Finished, FinishReason, Prefill, PromptLogprobs, Stats
from magistral_mlx.runtime.progress import PrefillClock
from magistral_mlx.runtime.token_events import TokenEvents

if TYPE_CHECKING:
    from magistral_mlx.engine.sequence import SequenceState, Token
    from magistral_mlx.memory.plan import Plan
    from magistral_mlx.runtime.generation_request import GenerationRequest


class RunningSample:
    """The state of a sample between two passes.

    sequence: the engine's part. produced: ids of the tokens so far.
    """

    def __init__(
        self,
        inputs: GenerationRequest,
        seed: int,
        sequence: SequenceState,
        plan: Plan,
        clock: Callable[[], float],
    ) -> None:
        self.sequence = sequence
        self.produced: list[int] = []
        self._prompt_tokens = len(inputs.prompt)
        self._plan, self._clock = plan, clock
        self._events = TokenEvents(inputs, seed)
        self._prefill_clock = PrefillClock(plan.model.config.text, clock)
        self._cached: int | None = None  # tokens of the prompt
        self._peak = 0  # bytes
        self._prefill_seconds = 0.0
        self._start = clock()
        self._first: float | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._events.stopped_by is not None

    @property
    def error(self) -> Exception | None:
        """Error that ended this sequence alone; None without one."""
        return None if self.stopped else self.sequence.error

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it has ended by itself; None while it goes on."""
        if self.stopped:
            return "stop"
        finish, plan = self.sequence.finish, self._plan
        length = self._prompt_tokens + len(self.produced)
        if finish == "length" and plan.shortened and length >= plan.context:
            return "memory"  # a larger machine would go on
        return finish

    def add_prefill(self, progress: Prefill, seconds: float) -> Prefill:
        """Note progress through the prompt, which took so long -> it, with the time left."""
        self._prefill_seconds += seconds
        if self._cached is None:
            self._cached = progress.done
        return self._prefill_clock(progress)

    @property
    def prompt_logprobs(self) -> PromptLogprobs | None:
        """Those of the prompt, which has been prefilled; None unless asked for."""
        found = self.sequence.prompt_logprobs
        return None if found is None else self._events.prompt_logprobs(found)

    def add_tokens(self, tokens: Sequence[Token], seconds: float) -> list[Event]:
        """Take in the tokens of a pass, which took so long -> what they complete."""
        if self._first is None and tokens:
            self._first = self._clock()
            self._prefill_seconds += seconds
        events: list[Event] = []
        for n, token in enumerate(tokens):
            self.produced.append(token.id)
            events += self._events.feed(token)
            if self.stopped:
                self.sequence.close(unused=len(tokens) - n - 1)
                break
        return events

    def add_peak(self, nbytes: int) -> None:
        """Note that so many bytes were in use at once while it ran."""
        self._peak = max(self._peak, nbytes)

    def finish(self, reason: FinishReason) -> list[Event]:
        """End it -> what was incomplete, and `Finished`."""
        sequence, events = self.sequence, self._events
        sequence.close()
        rest = events.finish()
        end = self._clock()
        first = end if self._first is None else self._first
        stats = Stats(
            prompt_tokens=self._prompt_tokens,
            thinking_tokens=events.thinking_tokens,
            answer_tokens=events.answer_tokens,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=end - first,
            first_token_seconds=first - self._start,
            peak_memory=self._peak,
            thinking_end=sequence.thinking_end,
            mask_seconds=sequence.mask_seconds,
            passes=sequence.passes,
            drafted=sequence.drafted,
            accepted=sequence.accepted,
            cached_tokens=self._cached or 0,
        )
        return [*rest, Finished(reason, stats, events.stopped_by)]
