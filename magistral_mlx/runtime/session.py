"""A loaded model between its callers' threads and its worker thread.

It knows nothing of `Magistral`, so that a `Magistral` that nobody holds any more can be collected
and have its session closed.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from magistral_mlx.errors import ModelClosed, RankLost
from magistral_mlx.runtime.activity import Activity
from magistral_mlx.runtime.progress import LoadProgress, OnProgress
from magistral_mlx.runtime.request import Observer, Request
from magistral_mlx.runtime.scheduler import Scheduler
from magistral_mlx.runtime.worker import CLOSED, Worker

if TYPE_CHECKING:
    from concurrent.futures import Future

    from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
    from magistral_mlx.model.adapters import Adapter
    from magistral_mlx.runtime.generation_request import GenerationRequest
    from magistral_mlx.runtime.model_runner import ModelRunner

T = TypeVar("T")

_NOTICING = 3.0  # seconds in which the worker notices that a rank was lost


class Session:
    """The worker thread of one model, and the requests that it serves."""

    def __init__(
        self,
        runner: ModelRunner,
        parallel: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`parallel`: requests that run at once at most. `clock`: seconds, as `perf_counter`."""
        self._runner = runner
        self._scheduler = Scheduler(runner, parallel, clock)
        self._lock = threading.RLock()
        self._requests: weakref.WeakSet[Request] = weakref.WeakSet()
        self._closed = False
        self._process = os.getpid()
        self._abort = threading.Event()
        self._worker = Worker("magistral-mlx", self._scheduler.step, weakref.WeakMethod(self.close))
        runner.when_idle = self._worker.wake
        self._watch_ranks()

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    @property
    def last_notes(self) -> tuple[str, ...]:
        """What the disk cache, which writes until the end, had to say when it was closed."""
        return self._runner.last_notes

    @property
    def activity(self) -> Activity:
        """Live statistics; all is zero once it has been closed."""
        if self._closed:
            return Activity()
        runner, scheduler = self._runner, self._scheduler
        counts = runner.counts
        return Activity(
            running=scheduler.running,
            waiting=scheduler.waiting,
            prompts=counts.prompts,
            hits=counts.hits,
            prompt_tokens=counts.tokens,
            reused_tokens=counts.reused,
            images=counts.images,
            reused_images=counts.seen,
            memory=replace(runner.memory, caches=scheduler.caches),
            disk_problem=runner.disk_problem,
        )

    def load(self) -> Callable[[OnProgress | None], None]:
        """Begin to load. What is returned waits for the end and reports progress meanwhile.

        It calls the callback in the thread that waits, and raises what went wrong.
        """
        items: SimpleQueue[LoadProgress | None] = SimpleQueue()
        start = time.perf_counter()

        def report(done: int, total: int) -> None:
            items.put(LoadProgress("weights", done, total, time.perf_counter() - start))

        runner, abort = self._runner, self._abort
        future = self._worker.call(lambda: runner.load(report, abort))
        future.add_done_callback(lambda _: items.put(None))

        def wait(on_progress: OnProgress | None) -> None:
            while (item := items.get()) is not None:
                if on_progress:
                    on_progress(item)
            future.result()

        return wait

    def submit(self, inputs: GenerationRequest, observer: Observer | None = None) -> Request:
        """Queue a request. `observer` gets its events on the worker thread, from the first on.

        Raises:
            ModelClosed: the model has been closed.
        """
        self.check_open()  # before the lock, which a fork may have copied while it was held
        with self._lock:
            self.check_open()
            request = self._scheduler.submit(inputs, observer)
            self._requests.add(request)
            self._worker.wake()
        return request

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The loaded adapters by name."""
        return self._runner.adapters

    def load_adapter(self, name: str, stored: StoredAdapter) -> None:
        """Load an adapter, between two steps of what goes on, and wait for it.

        Raises:
            ModelClosed: the model has been closed.
            OutOfMemory: it does not fit beside what runs.
            CheckpointError: its file cannot be read.
        """
        self._call_open(lambda: self._scheduler.load_adapter(name, stored)).result()

    def drop_adapter(self, name: str) -> None:
        """Drop an adapter, and wait for it; what runs with it goes on to its end.

        Raises:
            ModelClosed: the model has been closed.
        """
        self._call_open(lambda: self._scheduler.drop_adapter(name)).result()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the worker thread, between two steps of what goes on."""
        return self._worker.call(function)

    def _call_open(self, function: Callable[[], T]) -> Future[T]:
        """`call` of a model that is not being closed meanwhile.

        Raises:
            ModelClosed: the model has been closed.
        """
        self.check_open()  # before the lock, which a fork may have copied while it was held
        with self._lock:
            self.check_open()
            return self._worker.call(function)

    def _watch_ranks(self) -> None:
        """Have all requests ended when another rank is lost."""
        end = weakref.WeakMethod(self._end_lost)

        def lost() -> None:
            if (alive := end()) is not None:
                alive()

        self._runner.notify_lost(lost)

    def _end_lost(self) -> None:
        """End all requests after a rank was lost; the worker may wait for it inside MLX for good.

        An operation over ranks that is under way when one ends fails, but those after it in the
        same pass wait for ever (`SocketThread::worker` in mlx/distributed/ring/ring.cpp).
        """
        if self._worker.responds(_NOTICING):
            return
        self._worker.abandon(RankLost(str(self.lost)))
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            request.finish(RankLost(str(self.lost)))

    @property
    def lost(self) -> RankLost | None:
        """Why it can answer no more, once a machine that computes with this one is gone."""
        return self._runner.lost

    def check_open(self) -> None:
        """Check that requests can be served.

        Raises:
            ModelClosed: it has been closed, or this is a fork of the process that loaded it.
            RankLost: a machine that computes with this one is gone.
        """
        if self._closed:
            raise ModelClosed(CLOSED)
        if self._forked:
            raise ModelClosed(
                "this process is a fork of the one that loaded the model, whose worker thread "
                "stayed there. Load the model in this process, or start it with spawn."
            )
        if self.lost is not None:
            raise RankLost(str(self.lost))

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._process

    def release(self) -> None:
        """Free what comes back by itself, within a token if one is being generated."""
        self._call_open(self._runner.release)

    def interrupt(self) -> None:
        """Stop loading, and every request that runs or waits."""
        self._abort.set()
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            request.cancel()

    def close(self) -> None:
        """Stop everything and give the memory back, soon. The second time nothing happens."""
        if self._forked:
            return  # the memory is the parent's to give back
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.interrupt()
            self._worker.call(self._scheduler.close)
            self._worker.call(self._runner.close)
            self._worker.stop()

    def wait_closed(self) -> None:
        """Wait until the memory has been given back, after `close`."""
        if not self._forked:
            self._worker.join()
