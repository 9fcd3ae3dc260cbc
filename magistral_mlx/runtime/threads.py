"""Daemon threads that are reused, since what MLX makes for a thread outlives it.

Each thread that computes gets a stream of its own from MLX, and a stream on the CPU keeps a thread
of the operating system for the life of the process. A program that loads and closes models again
and again would collect them; so a thread whose work has ended waits for the next.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from magistral_mlx.backend import mx

_EXIT_TIMEOUT = 10.0  # seconds


class _ReusedThread:
    """A thread that runs one function after another."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def start(self, task: Callable[[], None] | None) -> None:
        """Run `task`, which must not raise; None ends the thread."""
        self._tasks.put(task)

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
            del task  # or what it holds would stay until the next one comes
        mx.clear_streams()  # one left when the process exits may abort it


_lock = threading.Lock()
_idle: list[_ReusedThread] = []


def run_in_thread(name: str, function: Callable[[], None]) -> threading.Event:
    """Run `function`, which must not raise, in an idle thread or a new one.

    Returns:
        An event that is set when the function has returned.
    """
    ended = threading.Event()
    with _lock:
        reused = _idle.pop() if _idle else _ReusedThread()
    reused.thread.name = name

    def task() -> None:
        function()
        with _lock:
            _idle.append(reused)
        ended.set()

    reused.start(task)
    return ended


def _stop_idle() -> None:
    with _lock:
        threads, _idle[:] = list(_idle), []
    for reused in threads:
        reused.start(None)
    for reused in threads:
        reused.thread.join(_EXIT_TIMEOUT)


def _forget_idle() -> None:
    """In a forked child, which has none of its parent's threads."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


atexit.register(_stop_idle)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_idle)
