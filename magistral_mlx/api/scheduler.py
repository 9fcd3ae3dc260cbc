"""Who is answered when: several answers in one pass, prompts in between.

A step lets in who fits into memory, reads one part of one prompt if one's turn has come, and gives
everybody whose prompt has been read the next token. So an answer joins and leaves at any token, and
nobody waits longer than for a part of another's prompt. Everything but what is said to be for any
thread runs on the worker thread.

Memory. An answer with `max_tokens` is let in when all of it fits, and comes to its end. One
without is let in with room for some thousand tokens; when it needs more than there is, it stands
still until another one ends. If all that run stand still, the newest of these ends for "memory".
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec

from magistral_mlx.api.running import Run, told
from magistral_mlx.api.turns import Turns
from magistral_mlx.backend import mx
from magistral_mlx.engine.generate import decode_together
from magistral_mlx.engine.prefix_cache import ActivePrefix
from magistral_mlx.events import FinishReason, Notice
from magistral_mlx.memory.admission import Budget, Reservation

_SHARED_CHUNK = 512  # tokens of a prompt that others wait for at once, at most

if TYPE_CHECKING:
    from magistral_mlx.api.answer import Answer
    from magistral_mlx.api.composer import Job
    from magistral_mlx.api.runtime import Runtime
    from magistral_mlx.chat.tokenizer import Tokenizer
    from magistral_mlx.engine.generate import Token
    from magistral_mlx.engine.prefill import ComputedPrefix

P = ParamSpec("P")


class Scheduler:
    """The answers that run and those that wait for their turn."""

    def __init__(
        self, runtime: Runtime, parallel: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`parallel`: answers that run at once at most. `clock`: seconds."""
        self._runtime, self._parallel = runtime, parallel
        self._clock = clock
        self._budget = Budget(runtime.plan)
        self._lock = threading.Lock()  # of `_waiting`
        self._waiting: deque[Run] = deque()  # in the order in which they came
        self._running: list[Run] = []  # likewise
        self._turns = Turns()  # of those of them whose prompts are being read
        self._short = False  # somebody stands still for want of memory

    # For any thread

    def submit(self, job: Job, answer: Answer, tokenizer: Tokenizer) -> None:
        """Let a job wait for its turn; a step must follow."""
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in job.prompt.images]
        asked = job.options.max_tokens is not None
        reservation = self._budget.reservation(len(job.prompt), job.limit, sizes, asked=asked)
        run = Run(job, answer, tokenizer, self._runtime.plan, reservation)
        with self._lock:
            self._waiting.append(run)

    @property
    def running(self) -> int:
        """Answers that are being generated."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that wait for their turn."""
        with self._lock:
            return sum(not run.answer.done for run in self._waiting)

    @property
    def caches(self) -> int:
        """Bytes of the caches of what runs."""
        return sum(self._budget.cache(run.reservation.held) for run in list(self._running))

    # On the worker

    def step(self) -> bool:
        """Go on with everybody by a token -> whether there is more to do."""
        try:
            self._admit()
            self._end_cancelled()
            self._fill()
            self._end_cancelled()
            self._decode()
            self._keep_within_memory()
            return bool(self._running or self._waiting) or self._runtime.keep_some()
        except BaseException as error:
            self._fail(error)
            return bool(self._waiting)

    def close(self) -> None:
        """End everything, all of which has been cancelled."""
        try:
            self._end_cancelled()
        except BaseException as error:
            self._fail(error)
        with self._lock:
            self._waiting.clear()

    # Coming in

    def _admit(self) -> None:
        """Let in those who fit, in the order in which they came."""
        while len(self._running) < self._parallel and not self._short:
            with self._lock:
                while self._waiting and self._waiting[0].answer.done:
                    self._waiting.popleft()
                first = self._waiting[0] if self._waiting else None
            if first is None:
                return
            if self._running and not self._budget.fits([*self._reservations(), first.reservation]):
                return
            with self._lock:
                self._waiting.popleft()
            if first.answer.begin():
                self._join(first)

    def _join(self, run: Run) -> None:
        self._running.append(run)
        self._turns.join(run)
        self._for_one(run, self._look_at, run)

    def _look_at(self, run: Run) -> None:
        if run.job.dropped:
            run.answer.put(run.job.dropped)
        self._runtime.check_images(run.job)
        run.images, run.keys = self._runtime.keys(run.job)

    # Prompts

    def _fill(self) -> None:
        """Read a part of the prompt whose turn it is."""
        run = self._turns.next(self._runtime.prefixes.longest)
        if run is None:
            return
        others_decode = any(not other.filling for other in self._running)
        start = self._clock()
        self._for_one(run, self._fill_one, run)
        if others_decode:
            self._turns.read(self._clock() - start)
        if run not in self._running:
            return
        if run.filling:
            self._turns.join(run)
        else:
            run.reservation = run.reservation.prefilled()

    def _fill_one(self, run: Run) -> None:
        if run.generation is None:
            self._begin(run)
            run.fill(self._chunk)  # which tells what is held, and looks at the first image
            if run.images:
                return
        if run.filling:
            run.fill(self._chunk)

    @property
    def _chunk(self) -> int:
        """Tokens of a prompt to read at once: fewer where others wait for it."""
        chunk = self._runtime.plan.chunk
        shared = len(self._running) > 1 or self._waiting
        return min(chunk, _SHARED_CHUNK) if shared else chunk

    def _begin(self, run: Run) -> None:
        """Begin its first sample, with what is in caches already, be they kept or in use."""
        runtime = self._runtime
        room = self._budget.active_bytes(self._reservations())
        in_use = [
            ActivePrefix(other.keys, other.generation.caches)
            for other in self._running
            if other.generation is not None
        ]
        prefilled = runtime.prefixes.take(run.job.prompt.tokens, run.images, room, in_use)
        for note in runtime.prefixes.take_notes():
            run.answer.put(Notice(note))
        if prefilled is not None:
            held = sum(cache.nbytes for cache in prefilled.caches)
            run.reservation = run.reservation.holding(self._budget.tokens(held))
        self._begin_sample(run, prefilled)

    def _begin_sample(self, run: Run, prefilled: ComputedPrefix | None) -> None:
        self._mark_peak()
        run.begin(self._runtime.generate(run.job, run.index, prefilled, images=run.images))

    # Tokens

    def _decode(self) -> None:
        """A token for everybody whose prompt has been read, as far as memory allows."""
        ready = [run for run in self._running if not run.filling]
        going = [run for run in ready if self._has_room(run)]
        self._short = len(going) < len(ready)
        if not going:
            self._turns.nobody_decodes()
            if self._short and not self._turns:
                self._end_newest(ready)
            return
        start = self._clock()
        generations = [run.generation for run in going if run.generation]
        passed = decode_together(self._runtime.model, generations)
        seconds = self._clock() - start
        self._turns.decoded(seconds)
        for run, tokens in zip(going, passed, strict=True):
            self._for_one(run, self._take_in, run, tokens, seconds)

    def _take_in(self, run: Run, tokens: Sequence[Token], seconds: float) -> None:
        run.feed(tokens, seconds)
        if run.error is not None and not run.stopped:
            self._end(run, run.error)
        elif run.reason is not None:
            self._finish(run, run.reason)

    def _finish(self, run: Run, reason: FinishReason) -> None:
        """End a sample, and begin the next one if there is to be one."""
        run.saw_peak(mx.get_peak_memory())
        run.finish(reason)
        run.index += 1
        if run.generation is None or run.index >= run.job.options.n or run.answer.cancelled:
            self._end(run)
            return
        prefilled = run.generation.prefilled
        self._for_one(run, self._begin_sample, run, prefilled)
        if run in self._running and prefilled is not None:
            self._for_one(run, run.fill, self._chunk)  # at once, as all of it is in the caches
        elif run in self._running:
            self._turns.join(run)

    # Memory

    def _reservations(self) -> list[Reservation]:
        return [run.reservation for run in self._running]

    def _has_room(self, run: Run) -> bool:
        """Whether its next token has room, letting its caches grow if they must and may."""
        if not run.reservation.short(run.length):
            return True
        grown = run.reservation.grown()
        reservations = [grown if other is run else other.reservation for other in self._running]
        if len(reservations) > 1 and not self._budget.fits(reservations):
            return False
        run.reservation = grown
        self._runtime.prefixes.evict_for(self._budget.active_bytes(reservations))
        return True

    def _end_newest(self, runs: list[Run]) -> None:
        """Nobody can go on: end the newest one to which no length was promised."""
        open_ended = [run for run in runs if not run.reservation.asked]
        newest = (open_ended or runs)[-1]
        self._for_one(newest, self._finish, newest, "memory")
        self._short = False

    def _keep_within_memory(self) -> None:
        """End the newest one if something else in this process has taken the memory."""
        begun = [run for run in self._running if run.generation is not None]
        if begun and self._runtime.short_of_memory():
            self._for_one(begun[-1], self._finish, begun[-1], "memory")

    def _mark_peak(self) -> None:
        """Begin to measure the peak anew, for a sample that begins."""
        peak = mx.get_peak_memory()
        for run in self._running:
            run.saw_peak(peak)
        mx.reset_peak_memory()

    # Going

    def _end_cancelled(self) -> None:
        for run in [run for run in self._running if run.answer.cancelled]:
            self._for_one(run, self._finish, run, "cancelled")

    def _end(self, run: Run, error: BaseException | None = None) -> None:
        """The answer is over: keep its caches for prompts to come."""
        self._leave(run)
        run.answer.end(told(error))
        generation = run.generation
        if generation is not None:
            generation.close()
            # It may take as long as a token, and nobody waits for it.
            room = self._budget.active_bytes(self._reservations())
            self._runtime.prefixes.put(
                run.tokens, run.images, generation.caches, generation.prefilled, room
            )

    def _leave(self, run: Run) -> None:
        self._running.remove(run)
        self._turns.leave(run)

    def _for_one(self, run: Run, work: Callable[P, None], *args: P.args, **more: P.kwargs) -> None:
        """Do something for one answer, which alone is ended by what goes wrong in it.

        Raises:
            RuntimeError: the device failed.
        """
        try:
            work(*args, **more)
        except BaseException as error:
            # MLX raises no kind of its own, and kinds of RuntimeError are not MLX's.
            if type(error) is RuntimeError or run not in self._running:
                raise
            self._end(run, error)

    def _fail(self, error: BaseException) -> None:
        """Work for all of them failed, and nobody knows what their caches hold."""
        for run in list(self._running):
            self._leave(run)
            run.answer.end(told(error))
        self._short = False
