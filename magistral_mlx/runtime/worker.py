"""The one thread on which a model lives.

MLX arrays that are not evaluated belong to the thread that made them, so loading, generating and
closing all happen here. What is asked for runs in order, between two steps of what goes on.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, TypeVar

from magistral_mlx.errors import ModelClosed
from magistral_mlx.runtime.threads import run_in_thread
from magistral_mlx.tracebacks import without_frames

T = TypeVar("T")

CLOSED = "this model has been closed. Load it again to ask it."

_LOOK_EVERY = 0.2  # seconds
_EXIT_TIMEOUT = 30.0  # seconds that leaving Python waits for what the device is at


@dataclass(frozen=True)
class _Job:
    """Something to run, which must not raise. future: what somebody waits for; it is set inside."""

    run: Callable[[], None]
    future: Future[Any] | None = None


class Worker:
    """A thread that takes steps while there is more to do, and runs what it is given in between.

    It is a daemon, so it cannot keep Python from leaving; before that it is stopped in order.
    """

    def __init__(
        self, name: str, step: Callable[[], bool], close: weakref.WeakMethod[Callable[[], None]]
    ) -> None:
        """Start the thread.

        Args:
            step: tells whether there is more to do; called after each job. It must not raise.
            close: has the thread stopped when Python leaves.
        """
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._close = close
        self._stopped = Event()  # nothing is taken from the queue any more
        self._abandoned: Exception | None = None  # and why
        self._process = os.getpid()  # a forked child does not have the thread
        self._ended = run_in_thread(name, partial(_work, self._jobs, step, self._stopped))
        atexit.register(self._at_exit)

    def wake(self) -> None:
        """Have it take a step, as there is something to do."""
        self._submit(_Job(lambda: None))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Queue `function`; the future gets its value or what it raises.

        After the end, or if that comes first, it gets a `ModelClosed`, or the error with which
        the thread was abandoned.
        """
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = function()
            except BaseException as error:
                future.set_exception(without_frames(error))
            else:
                future.set_result(value)

        self._submit(_Job(job, future))
        return future

    def stop(self) -> None:
        """End after what queues now. Does not wait for it."""
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the end, unless it was abandoned."""
        while self._abandoned is None and not self._ended.wait(_LOOK_EVERY):
            pass
        atexit.unregister(self._at_exit)

    def responds(self, seconds: float) -> bool:
        """Whether it takes a job within so many seconds."""
        taken = Event()
        self._submit(_Job(taken.set))
        return taken.wait(seconds)

    def abandon(self, error: Exception) -> None:
        """Give up waiting for it: it is inside MLX and does not come back.

        What it was given fails with `error`, and what it will be given does at once.
        """
        self._abandoned = error
        _refuse(self._jobs, error)

    def _submit(self, job: _Job) -> None:
        self._jobs.put(job)
        # Perhaps since the queue was emptied for the last time.
        if self._abandoned is not None:
            _refuse(self._jobs, self._abandoned)
        elif self._stopped.is_set():
            _refuse(self._jobs, ModelClosed(CLOSED))

    def _at_exit(self) -> None:
        if os.getpid() != self._process:
            return
        close = self._close()
        if close is not None:
            close()
        if self._abandoned is None:
            self._ended.wait(_EXIT_TIMEOUT)


def _work(jobs: SimpleQueue[_Job | None], step: Callable[[], bool], stopped: Event) -> None:
    more = False
    while True:
        if not more or not jobs.empty():
            job = jobs.get()
            if job is None:
                stopped.set()
                _refuse(jobs, ModelClosed(CLOSED))
                return
            job.run()
            del job  # or what it holds would stay until the next one comes
        more = step()


def _refuse(jobs: SimpleQueue[_Job | None], error: Exception) -> None:
    """Empty the queue of a worker that takes no more, and fail what somebody waits for."""
    while True:
        try:
            job = jobs.get_nowait()
        except Empty:
            return
        future = job.future if job else None
        if future and future.set_running_or_notify_cancel():
            future.set_exception(error)
