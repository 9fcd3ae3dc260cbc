"""The one thread on which a model lives.

MLX arrays that are not evaluated belong to the thread that made them, so loading, generating and
closing all happen here. What is asked for runs in order, between two steps of what goes on.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

_PATIENCE = 30.0  # seconds that leaving Python waits for what the device is at


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
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._close = close
        self._thread = threading.Thread(
            target=_work, args=(self._jobs, step), name=name, daemon=True
        )
        self._thread.start()
        atexit.register(self._at_exit)

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job, which must not raise."""
        self._jobs.put(job)

    def wake(self) -> None:
        """Have it take a step, as there is something to do."""
        self.submit(lambda: None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Queue `function`; the future gets its value or what it raises."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = function()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)

        self.submit(job)
        return future

    def stop(self) -> None:
        """End the thread after what queues now. Does not wait for it."""
        self._jobs.put(None)

    def join(self) -> None:
        """Wait for the end of the thread."""
        self._thread.join()
        atexit.unregister(self._at_exit)

    def _at_exit(self) -> None:
        close = self._close()
        if close is not None:
            close()
        self._thread.join(_PATIENCE)


def _work(jobs: SimpleQueue[Callable[[], None] | None], step: Callable[[], bool]) -> None:
    more = False
    while True:
        if not more or not jobs.empty():
            job = jobs.get()
            if job is None:
                return
            job()
            del job  # or what it holds would stay until the next one comes
        more = step()
