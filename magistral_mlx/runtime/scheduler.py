"""Continuous batching: which requests are admitted, prefilled and decoded in each step.

A step admits requests that fit into memory, prefills one chunk of one prompt if one is due, and
decodes one token of every request whose prompt is in its caches. So a request joins and leaves at
any token, and waits for no more than a chunk of another's prompt. Everything runs on the worker
thread unless it is marked as being for any thread.

A request with `max_tokens` is admitted when all of it fits, and finishes. One without starts with
memory for some thousand tokens; when it needs more than is left, it pauses until another finishes.
If all pause, the newest of them ends with the reason "memory".

The file is longer than others because all stages of a step work on the same queues.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec

from magistral_mlx.backend import device_error_advice, mx
from magistral_mlx.engine.prefix_cache import ActivePrefix
from magistral_mlx.errors import DeviceError, OutOfMemory, RankLost
from magistral_mlx.events import FinishReason, Notice
from magistral_mlx.memory.admission import Budget, Reservation
from magistral_mlx.memory.plan import gib
from magistral_mlx.runtime.generation_request import GenerationRequest
from magistral_mlx.runtime.prefill_queue import PrefillQueue
from magistral_mlx.runtime.request import Observer, Request
from magistral_mlx.tracebacks import without_frames

_SHARED_CHUNK = 512  # tokens of a prompt that others wait for at once, at most

if TYPE_CHECKING:
    from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
    from magistral_mlx.engine.prefill import ComputedPrefix
    from magistral_mlx.engine.sequence import Token
    from magistral_mlx.runtime.model_runner import ModelRunner

P = ParamSpec("P")


class Scheduler:
    """The running requests and the waiting ones."""

    def __init__(
        self, runner: ModelRunner, parallel: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`parallel`: requests that run at once at most. `clock`: seconds, as `perf_counter`."""
        self._runner, self._parallel = runner, parallel
        self._clock = clock
        self._budget = Budget(runner.plan, runner.lent)
        self._lock = threading.Lock()  # of `_waiting`
        self._waiting: deque[Request] = deque()  # in the order in which they came
        self._running: list[Request] = []  # likewise
        self._prefills = PrefillQueue()  # those of them whose prompts are being read
        self._short = False  # somebody stands still for want of memory

    # For any thread

    def submit(self, inputs: GenerationRequest, observer: Observer | None = None) -> Request:
        """Queue a request; a step must follow. `observer` gets its events from the first on."""
        sizes = [(pixels.shape[1], pixels.shape[2]) for pixels in inputs.prompt.images]
        reservation = self._budget.reservation(
            len(inputs.prompt), inputs.limit, sizes, asked=inputs.limit_asked
        )
        request = Request(inputs, reservation, observer, self._clock)
        with self._lock:
            self._waiting.append(request)
        return request

    @property
    def running(self) -> int:
        """Answers that are being generated."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Answers that wait for their turn."""
        with self._lock:
            return sum(not request.finished for request in self._waiting)

    @property
    def caches(self) -> int:
        """Bytes of the caches of what runs."""
        return sum(self._budget.cache(request.reservation.held) for request in list(self._running))

    # On the worker

    def step(self) -> bool:
        """Go on with everybody by a token -> whether there is more to do."""
        try:
            self._admit()
            self._end_stopped()
            self._prefill()
            self._end_stopped()
            self._decode()
            self._keep_within_memory()
            return bool(self._running or self._waiting) or self._runner.keep_some()
        except BaseException as error:
            self._fail(error)
            return bool(self._waiting)

    def close(self) -> None:
        """End everything, all of which has been cancelled."""
        try:
            self._end_stopped()
        except BaseException as error:
            self._fail(error)
        with self._lock:
            self._waiting.clear()

    # Adapters

    def load_adapter(self, name: str, stored: StoredAdapter) -> None:
        """Load an adapter beside those there are, in memory that the prefix cache gives up.

        Raises:
            OutOfMemory: it does not fit beside what runs.
            CheckpointError: its file cannot be read.
        """
        plan, lent = self._runner.plan, self._runner.lent()
        more = self._runner.lent(stored.nbytes(plan.profile.float_bytes)) - lent
        if lent + more > plan.kept or not self._budget.fits(self._reservations(), more):
            raise OutOfMemory(
                f"the adapter {name} takes {gib(more)}, and {gib(max(0, plan.kept - lent))} are "
                "left beside the plan. Drop another adapter, or load the model with this one, or "
                "with less context."
            )
        self._runner.load_adapter(name, stored)
        self._runner.prefixes.evict_for(self._budget.active_bytes(self._reservations()))

    def drop_adapter(self, name: str) -> None:
        """Drop an adapter; what runs with it goes on to its end."""
        self._runner.drop_adapter(name)

    # Coming in

    def _admit(self) -> None:
        """Let in those who fit, in the order in which they came."""
        while len(self._running) < self._parallel and not self._short:
            with self._lock:
                while self._waiting and self._waiting[0].finished:
                    self._waiting.popleft()
                first = self._waiting[0] if self._waiting else None
            if first is None:
                return
            if self._running and not self._budget.fits([*self._reservations(), first.reservation]):
                return
            with self._lock:
                self._waiting.popleft()
            if first.start():
                self._join(first)

    def _join(self, request: Request) -> None:
        self._running.append(request)
        self._prefills.join(request)
        self._for_one(request, self._open, request)

    def _open(self, request: Request) -> None:
        self._runner.check_images(request.inputs)
        request.image_keys, request.token_keys = self._runner.keys_of(request.inputs)

    # Prompts

    def _prefill(self) -> None:
        """Read a part of the prompt whose turn it is."""
        request = self._prefills.next(self._runner.prefixes.longest)
        if request is None:
            return
        others_decode = any(not other.prefilling for other in self._running)
        start = self._clock()
        self._for_one(request, self._prefill_one, request)
        if others_decode:
            self._prefills.read(self._clock() - start)
        if request not in self._running:
            return
        if request.prefilling:
            self._prefills.join(request)

    def _prefill_one(self, request: Request) -> None:
        if request.sample is None:
            self._start_first_sample(request)
            self._prefill_chunk(request)  # which tells what is cached, and encodes the first image
            if request.image_keys:
                return
        if request.prefilling:
            self._prefill_chunk(request)

    def _prefill_chunk(self, request: Request) -> None:
        assert request.sequence is not None
        start = self._clock()
        progress = self._runner.prefill(request.sequence, self._chunk)
        request.add_prefill(progress, self._clock() - start)
        if not (request.prefilling or self._may_read_again(request)):
            request.reservation = request.reservation.prefilled()
            self._drop_tower()

    def _may_read_again(self, request: Request) -> bool:
        """Whether the prompt may have to be read once more, for the next sample of it."""
        return request.index + 1 < request.inputs.n and not self._runner.plan.trims_to_prompt

    @property
    def _chunk(self) -> int:
        """Tokens of a prompt to read at once: fewer where others wait for it."""
        chunk = self._runner.plan.chunk
        shared = len(self._running) > 1 or self._waiting
        return min(chunk, _SHARED_CHUNK) if shared else chunk

    def _start_first_sample(self, request: Request) -> None:
        """Start with what is in caches already, be they kept or in use."""
        prefixes = self._runner.prefixes
        room = self._budget.active_bytes(self._reservations())
        if request.inputs.prompt_logprobs is not None:  # all of the prompt is computed for them
            prefixes.evict_for(room)
            self._start_sample(request, None)
            return
        in_use = [
            ActivePrefix(other.token_keys, other.sequence.caches)
            for other in self._running
            if other.sequence is not None
        ]
        tokens = request.inputs.prompt.tokens
        adapter = request.inputs.adapter_key
        prefilled = prefixes.take(tokens, request.image_keys, room, in_use, adapter)
        self._put_notes(request)
        if prefilled is not None:
            held = prefilled.caches.nbytes
            request.reservation = request.reservation.holding(self._budget.tokens(held))
        self._start_sample(request, prefilled)

    def _put_notes(self, request: Request) -> None:
        """Pass on what the disk cache has to say to the user."""
        for note in self._runner.prefixes.take_notes():
            request.put(Notice(note))

    def _start_sample(self, request: Request, prefilled: ComputedPrefix | None) -> None:
        self._mark_peak()
        runner = self._runner
        sequence = runner.start(request.inputs, request.index, request.image_keys, prefilled)
        request.start_sample(sequence, runner.plan)

    # Tokens

    def _decode(self) -> None:
        """A token for everybody whose prompt has been read, as far as memory allows."""
        for request in list(self._running):
            if request.inputs.limit == 0 and not request.prefilling:
                self._for_one(request, self._finish, request, "length")
        ready = [
            request
            for request in self._running
            if request.inputs.limit > 0 and not request.prefilling
        ]
        going = [request for request in ready if self._has_room(request)]
        self._short = len(going) < len(ready)
        if not going:
            self._prefills.nobody_decodes()
            if self._short and not self._prefills:
                self._end_newest(ready)
            return
        start = self._clock()
        sequences = [request.sequence for request in going if request.sequence]
        passed = self._runner.decode(sequences)
        seconds = self._clock() - start
        self._prefills.decoded(seconds)
        for request, tokens in zip(going, passed, strict=True):
            self._for_one(request, self._take_in, request, tokens, seconds)

    def _take_in(self, request: Request, tokens: Sequence[Token], seconds: float) -> None:
        request.add_tokens(tokens, seconds)
        sample = request.sample
        assert sample is not None
        if sample.error is not None:
            self._end(request, sample.error)
        elif sample.finish_reason is not None:
            self._finish(request, sample.finish_reason)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """End a sample, and begin the next one if there is to be one."""
        if request.sample is not None:
            request.sample.add_peak(mx.get_peak_memory())
        self._put_notes(request)
        request.finish_sample(reason)
        request.index += 1
        stopped = request.cancelled or reason == "time"
        if request.sample is None or request.index >= request.inputs.n or stopped:
            self._end(request)
            return
        prefilled = request.sample.sequence.prefilled
        self._for_one(request, self._start_sample, request, prefilled)
        if request in self._running and prefilled is not None:
            # At once, as all of it is in the caches, unless they cannot be trimmed back to it.
            self._for_one(request, self._prefill_chunk, request)
        if request in self._running and request.prefilling:
            self._prefills.join(request)

    # Memory

    def _reservations(self) -> list[Reservation]:
        return [request.reservation for request in self._running]

    def _has_room(self, request: Request) -> bool:
        """Whether its next token has room, letting its caches grow if they must and may."""
        if not request.reservation.short(request.length):
            return True
        grown = request.reservation.grown()
        reservations = [grown if other is request else other.reservation for other in self._running]
        if len(reservations) > 1 and not self._budget.fits(reservations):
            return False
        request.reservation = grown
        self._runner.prefixes.evict_for(self._budget.active_bytes(reservations))
        return True

    def _end_newest(self, requests: list[Request]) -> None:
        """Nobody can go on: end the newest one to which no length was promised."""
        open_ended = [request for request in requests if not request.reservation.asked]
        newest = (open_ended or requests)[-1]
        self._for_one(newest, self._finish, newest, "memory")
        self._short = False

    def _keep_within_memory(self) -> None:
        """End the newest one if something else in this process has taken the memory."""
        begun = [request for request in self._running if request.sample is not None]
        if begun and self._runner.short_of_memory():
            self._for_one(begun[-1], self._finish, begun[-1], "memory")

    def _drop_tower(self) -> None:
        """Drop the vision tower if the plan does not include it, and no prompt needs it now."""
        if not any(request.reservation.tower for request in self._running):
            self._runner.drop_unplanned_tower()

    def _mark_peak(self) -> None:
        """Begin to measure the peak anew, for a sample that begins."""
        peak = mx.get_peak_memory()
        for request in self._running:
            if request.sample is not None:
                request.sample.add_peak(peak)
        mx.reset_peak_memory()

    # Going

    def _end_stopped(self) -> None:
        """End those that were cancelled, and those whose time is over."""
        for request in list(self._running):
            if request.cancelled:
                self._for_one(request, self._finish, request, "cancelled")
            elif request.overdue:
                self._for_one(request, self._finish, request, "time")

    def _end(self, request: Request, error: BaseException | None = None) -> None:
        """The answer is over: keep its caches for prompts to come."""
        self._leave(request)
        if error is not None:
            error = _as_device_error(without_frames(error))
        request.finish(error)
        sequence = request.sequence
        if sequence is not None:
            sequence.close()
            # It may take as long as a token, and nobody waits for it.
            room = self._budget.active_bytes(self._reservations())
            self._runner.prefixes.put(
                request.tokens,
                request.image_keys,
                sequence.caches,
                sequence.prefilled,
                room,
                request.inputs.adapter_key,
            )
        request.release()

    def _leave(self, request: Request) -> None:
        self._running.remove(request)
        self._prefills.leave(request)
        self._drop_tower()

    def _for_one(
        self, request: Request, work: Callable[P, None], *args: P.args, **more: P.kwargs
    ) -> None:
        """Do something for one answer, which alone is ended by what goes wrong in it.

        Raises:
            RuntimeError: the device failed. RankLost: so did another machine.
        """
        try:
            work(*args, **more)
        except BaseException as error:
            # MLX raises no kind of its own, and kinds of RuntimeError are not MLX's.
            device = type(error) is RuntimeError or isinstance(error, RankLost)
            if device or request not in self._running:
                raise
            self._end(request, error)

    def _fail(self, error: BaseException) -> None:
        """Work for all of them failed, and nobody knows what their caches hold."""
        error = without_frames(self._runner.explain(error))
        for request in list(self._running):
            self._leave(request)
            request.finish(_as_device_error(error))
            request.release()
        self._short = False


def _as_device_error(error: BaseException) -> BaseException:
    """Turn an error of MLX into a `DeviceError`; return any other as it is."""
    if not isinstance(error, RuntimeError):
        return error
    text = " ".join(str(error).split())
    return DeviceError(f"MLX failed while it generated: {text}. {device_error_advice(text)}")
