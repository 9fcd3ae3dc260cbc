"""One request, from its place in the queue to its results.

    WAITING -> PREFILLING -> DECODING -> FINISHED

The scheduler moves it on, on the worker thread. Anybody may watch it, wait for it or cancel it from
any thread: its events are accumulated once into results and passed on to its observers.

The file is longer than others because all of a request's state changes in it, under one lock.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from magistral_mlx.events import NOTHING, Event, Finished, FinishReason, Notice, Prefill, Sample
from magistral_mlx.runtime.generation_request import nth_seed
from magistral_mlx.runtime.result import Collector, Result
from magistral_mlx.runtime.sample import RunningSample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magistral_mlx.engine.images import ImageKey
    from magistral_mlx.engine.sequence import SequenceState, Token
    from magistral_mlx.memory.admission import Reservation
    from magistral_mlx.memory.plan import Plan
    from magistral_mlx.runtime.generation_request import GenerationRequest

GOOD_CONTEXT = 40_000  # tokens, by the model's card
_LONG = "Past {:,} tokens of context Magistral's answers may get worse."


class RequestStatus(Enum):
    """Where a request stands."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


@dataclass
class RequestTimes:
    """Moments of a request on one clock, in seconds; None for what has not happened."""

    queued: float
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(frozen=True)
class RequestEnd:
    """The last item that an observer gets: all events have come, or `error` came instead."""

    error: BaseException | None = None


Observer = Callable[[Event | RequestEnd], None]


class Request:
    """One request and what has become of it.

    inputs: what was asked for. seed: of the first sample. times: moments by `clock`.
    reservation: memory that it may take. image_keys, token_keys: what tells its images, and its
    prompt's tokens, from those of others. sample: the one being generated; None before the first
    prefill. index: of that sample.
    """

    def __init__(
        self,
        inputs: GenerationRequest,
        reservation: Reservation,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Queue it. `observer` gets every event from the first on."""
        import numpy as np  # not before there is a prompt

        self.inputs, self.reservation = inputs, reservation
        self.seed = inputs.sampling.seed
        self.times = RequestTimes(clock())
        self.image_keys: Sequence[ImageKey] = ()
        self.token_keys: NDArray[np.int64] = np.zeros(0, np.int64)
        self.sample: RunningSample | None = None
        self.index = 0
        self._clock = clock
        self._status = RequestStatus.WAITING
        self._observers: tuple[Observer, ...] = (observer,) if observer else ()
        self._collector = Collector(self.seed, inputs.answer_type)
        self._lock = threading.RLock()  # a dropped stream may cancel in the midst of it
        self._cancelled = False
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._warned = False  # that the context is long

    # From any thread

    @property
    def status(self) -> RequestStatus:
        """Where it stands."""
        return self._status

    @property
    def finished(self) -> bool:
        """Whether it has ended, by itself or not."""
        return self._done.is_set()

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why its newest finished sample ended; None before there is one."""
        results = self._collector.finished
        return results[-1].finish_reason if results else None

    @property
    def error(self) -> BaseException | None:
        """Error that ended it; None without one."""
        return self._error

    @property
    def results(self) -> tuple[Result, ...]:
        """A result for each sample, as far as it goes: the last one's grows while it runs.

        One that has not finished has None as its `finish_reason`.
        """
        return self._collector.results

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants it to stop."""
        return self._cancelled

    @property
    def ending(self) -> bool:
        """Whether it has ended or ends within a token: it was cancelled, or has no sample left."""
        return self.cancelled or len(self._collector.finished) >= self.inputs.n or self.finished

    def subscribe(self, observer: Observer) -> None:
        """Pass every further event to `observer`, and `RequestEnd` after the last.

        It is called on the worker thread, and must neither block nor raise.
        """
        with self._lock:
            self._observers = (*self._observers, observer)
            if not self.finished:
                return
        observer(RequestEnd(self._error))

    def cancel(self) -> None:
        """Stop it: at once if it waits, else after the current token or part of the prompt."""
        with self._lock:
            self._cancelled = True
            if self._status is not RequestStatus.WAITING:
                return
            self._status = RequestStatus.FINISHED
        self.put(Finished("cancelled", NOTHING))
        self._end(None)
        self.release()

    def cancel_without(self, reader: object) -> None:
        """Cancel it once nobody holds `reader` any more, so that the worker is free for others.

        Nothing here keeps the request: one that failed is kept alive by its error's traceback, and
        would keep the model with it.
        """
        request = weakref.ref(self)

        def cancel() -> None:
            if (alive := request()) is not None:
                alive.cancel()

        weakref.finalize(reader, cancel).atexit = False

    def wait(self, timeout: float | None = None) -> Result:
        """Wait for the end -> the result, with all samples in it.

        Raises:
            TimeoutError: it has not ended after `timeout` seconds.
            MagistralError: what went wrong while it was generated.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the request has not finished after {timeout} seconds.")
        if self._error is not None:
            raise self._error
        assert self._collector.result is not None
        return self._collector.result

    # On the worker

    @property
    def prefilling(self) -> bool:
        """Whether more of its prompt is to go into the caches."""
        return self._status is RequestStatus.PREFILLING

    @property
    def sequence(self) -> SequenceState | None:
        """The engine's state of the present sample."""
        return self.sample.sequence if self.sample else None

    @property
    def length(self) -> int:
        """Tokens of the prompt and of what came after it."""
        return len(self.inputs.prompt) + (len(self.sample.produced) if self.sample else 0)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """(L,) prompt and answer, as far as it goes."""
        import numpy as np

        produced = np.array(self.sample.produced if self.sample else (), np.int32)
        return np.concatenate([self.inputs.prompt.tokens, produced])

    def start(self) -> bool:
        """Leave the queue -> whether to run it: not if it was cancelled while it waited."""
        with self._lock:
            if self._status is not RequestStatus.WAITING:
                return False
            self._status = RequestStatus.PREFILLING
        self.times.started = self._clock()
        if self.inputs.dropped:
            self.put(self.inputs.dropped)
        return True

    @property
    def overdue(self) -> bool:
        """Whether its time limit has passed."""
        limit, started = self.inputs.time_limit, self.times.started
        return limit is not None and started is not None and self._clock() - started >= limit

    def start_sample(self, sequence: SequenceState, plan: Plan) -> None:
        """Begin the sample `index`."""
        if self.inputs.n > 1:
            self.put(Sample(self.index))
        seed = nth_seed(self.seed, self.index)
        self.sample = RunningSample(self.inputs, seed, sequence, plan, self._clock)
        self._status = RequestStatus.PREFILLING

    def add_prefill(self, progress: Prefill, seconds: float) -> None:
        """Note that a part of the prompt went into the caches in so many seconds."""
        assert self.sample is not None
        self._warn_if_long()
        self.put(self.sample.add_prefill(progress, seconds))
        if not self.sample.sequence.prefilling:
            self._status = RequestStatus.DECODING
            if (found := self.sample.prompt_logprobs) is not None:
                self.put(found)

    def add_tokens(self, tokens: Sequence[Token], seconds: float) -> None:
        """Take in the tokens of a pass that took so many seconds."""
        assert self.sample is not None
        if tokens and self.times.first_token is None:
            self.times.first_token = self._clock()
        self._warn_if_long()
        for event in self.sample.add_tokens(tokens, seconds):
            self.put(event)

    def finish_sample(self, reason: FinishReason) -> None:
        """End the present sample: put what was incomplete, and its figures."""
        if self.sample is None:
            self.put(Finished(reason, NOTHING))
            return
        for event in self.sample.finish(reason):
            self.put(event)

    def put(self, event: Event) -> None:
        """Accumulate an event, and pass it on."""
        self._collector.add(event)
        for observer in self._observers:
            observer(event)

    def finish(self, error: BaseException | None = None) -> None:
        """End it: all events have been put, or `error` came instead."""
        with self._lock:
            if self._status is RequestStatus.FINISHED:
                return
            self._status = RequestStatus.FINISHED
        self._end(error)

    def release(self) -> None:
        """Let go of caches, pixels and the adapter; a finished request may be held for long."""
        self.sample = None
        prompt = replace(self.inputs.prompt, images=())
        self.inputs = replace(self.inputs, prompt=prompt, grammar=None, adapter=None)

    def _end(self, error: BaseException | None) -> None:
        with self._lock:
            self._error = error
            self.times.finished = self._clock()
            self._done.set()
            observers = self._observers
        for observer in observers:
            observer(RequestEnd(error))

    def _warn_if_long(self) -> None:
        if self.length > GOOD_CONTEXT and not self._warned:
            self._warned = True
            self.put(Notice(_LONG.format(GOOD_CONTEXT)))
