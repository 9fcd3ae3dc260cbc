"""One answer while it is generated: what the engine gives, as events, with an end and figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.api.progress import PrefillClock
from magistral_mlx.api.reading import Reader
from magistral_mlx.errors import DeviceError
from magistral_mlx.events import NOTHING, Event, Finished, FinishReason, Notice, Sample, Stats

if TYPE_CHECKING:
    from magistral_mlx.api.answer import Answer
    from magistral_mlx.api.composer import Job
    from magistral_mlx.chat.tokenizer import Tokenizer
    from magistral_mlx.engine.generate import Generation, Token
    from magistral_mlx.engine.images import ImageKey
    from magistral_mlx.memory.admission import Reservation
    from magistral_mlx.memory.plan import Plan

_GOOD_CONTEXT = 40_000  # tokens, by the model's card
_LONG = f"Past {_GOOD_CONTEXT:,} tokens of context Magistral's answers may get worse."


class Run:
    """A request that is being answered: its samples, one after the other.

    reservation: what it may take of the memory. images, keys: what tells its images, and its
    prompt's tokens, from those of others.
    generation: the present sample's; None before the prompt's turn has come.
    """

    def __init__(
        self,
        job: Job,
        answer: Answer,
        tokenizer: Tokenizer,
        plan: Plan,
        reservation: Reservation,
    ) -> None:
        self.job, self.answer, self.reservation = job, answer, reservation
        self.images: Sequence[ImageKey] = ()
        self.keys: NDArray[np.int64] = np.zeros(0, np.int64)
        self.generation: Generation | None = None
        self.index = 0  # of the sample
        self._tokenizer, self._plan = tokenizer, plan
        self._produced: list[int] = []
        self._noted = False  # that it is long

    # Where it stands

    @property
    def filling(self) -> bool:
        """Whether its prompt is still to be read, or to be gone on with."""
        return self.generation is None or self.generation.filling

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what came after it."""
        return len(self.job.prompt) + len(self._produced)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(L,) prompt and answer, as far as it goes."""
        produced = np.array(self._produced, np.int32)
        return np.concatenate([self.job.prompt.tokens, produced])

    @property
    def error(self) -> Exception | None:
        """What ended the generation, if something went wrong with this one alone."""
        return self.generation.error if self.generation else None

    @property
    def reason(self) -> FinishReason | None:
        """Why the present sample has ended by itself; None while it goes on."""
        if self.stopped:
            return "stop"
        finish = self.generation.finish if self.generation else None
        if finish == "length" and self._plan.shortened and self.length >= self._plan.context:
            return "memory"  # a larger machine would go on
        return finish

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.generation is not None and self._reader.stopped

    # What happens

    def begin(self, generation: Generation) -> None:
        """Begin a sample."""
        if self.job.options.n > 1:
            self.answer.put(Sample(self.index))
        self.generation = generation
        self._produced = []
        self._reader = Reader(self.job, self._tokenizer, self.job.options.sampling(self.index).seed)
        self._clock = PrefillClock(self._plan.model.config.text)
        self._cached: int | None = None  # tokens of the prompt
        self._peak = 0
        self._own_seconds = 0.0  # that went into reading the prompt
        self._start = time.perf_counter()
        self._first: float | None = None

    def fill(self, most: int) -> None:
        """Look at an image, or read a part of the prompt, of so many tokens at most."""
        assert self.generation is not None
        start = time.perf_counter()
        self._note_length()
        progress = self.generation.fill(most)
        self._own_seconds += time.perf_counter() - start
        if self._cached is None:
            self._cached = progress.done
        self.answer.put(self._clock(progress))

    def feed(self, tokens: Sequence[Token], seconds: float) -> None:
        """Take in the tokens of a pass, which took so many seconds."""
        assert self.generation is not None
        if self._first is None and tokens:
            self._first = time.perf_counter()
            self._own_seconds += seconds
        for n, token in enumerate(tokens):
            self._note_length()
            self._produced.append(token.id)
            self._put_all(self._reader.feed(token))
            if self._reader.stopped:
                self.generation.close(unused=len(tokens) - n - 1)
                return

    def finish(self, reason: FinishReason) -> None:
        """End the sample: what was incomplete, and the figures."""
        if self.generation is None:
            self.answer.put(Finished(reason, NOTHING))
            return
        self.generation.close()
        reader = self._reader
        self._put_all(reader.finish())
        end = time.perf_counter()
        first = self._first or end
        stats = Stats(
            prompt_tokens=len(self.job.prompt),
            thinking_tokens=reader.thinking_tokens,
            answer_tokens=reader.answer_tokens,
            prefill_seconds=self._own_seconds,
            decode_seconds=end - first,
            first_token_seconds=first - self._start,
            peak_memory=self._peak,
            thinking_end=self.generation.thinking_end,
            mask_seconds=self.generation.mask_seconds,
            passes=self.generation.passes,
            drafted=self.generation.drafted,
            accepted=self.generation.accepted,
            cached_tokens=self._cached or 0,
        )
        self.answer.put(Finished(reason, stats, reader.stopped_by))

    def saw_peak(self, nbytes: int) -> None:
        """So many bytes were in use at once while it ran."""
        if self.generation is not None:
            self._peak = max(self._peak, nbytes)

    def _note_length(self) -> None:
        if self.length > _GOOD_CONTEXT and not self._noted:
            self._noted = True
            self.answer.put(Notice(_LONG))

    def _put_all(self, events: Sequence[Event]) -> None:
        for event in events:
            self.answer.put(event)


def told(error: BaseException | None) -> BaseException | None:
    """The error as its reader gets it."""
    if not isinstance(error, RuntimeError):
        return error
    # The traceback of the first one would keep the caches alive in whoever holds the error.
    return DeviceError(
        f"MLX failed while it generated: {' '.join(str(error).split())}. The model can be asked "
        "again; a shorter prompt or a smaller context needs less memory."
    )
