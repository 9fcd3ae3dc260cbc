"""One answer on its way from the worker to whoever reads it.

The worker puts events in; readers get them through a sink, from another thread or an event loop.
Cancelling takes effect at once while the answer still queues, and within a token afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from magistral_mlx.api.result import Collector, Result
from magistral_mlx.events import NOTHING, Event, Finished


@dataclass(frozen=True)
class End:
    """The last item that a sink gets: all events have been put, or `error` came instead."""

    error: BaseException | None = None


Sink = Callable[[Event | End], None]


class Answer:
    """The state of one answer. Every method may be called from any thread."""

    def __init__(self, sink: Sink, seed: int | None = None) -> None:
        self._sink = sink
        self._lock = threading.RLock()  # a collected stream may cancel in the midst of it
        self._state: Literal["queued", "running", "done"] = "queued"
        self._collector = Collector(seed)
        self._cancelled = False
        self._done = threading.Event()
        self._error: BaseException | None = None

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants it to stop."""
        return self._cancelled

    @property
    def done(self) -> bool:
        """Whether it has ended, by itself or not."""
        return self._done.is_set()

    def cancel(self) -> None:
        """Stop it: at once if it queues, else after the current token or part of the prompt."""
        with self._lock:
            self._cancelled = True
            if self._state != "queued":
                return
            self._state = "done"
        self.put(Finished("cancelled", NOTHING))
        self._finish(None)

    def begin(self) -> bool:
        """Whether the worker is to run it: not if it was cancelled while it queued."""
        with self._lock:
            if self._state != "queued":
                return False
            self._state = "running"
            return True

    def put(self, event: Event) -> None:
        """The next event, from whoever produces them."""
        self._collector.add(event)
        self._sink(event)

    def end(self, error: BaseException | None = None) -> None:
        """All events have been put, or `error` came instead."""
        with self._lock:
            if self._state == "done":
                return
            self._state = "done"
        self._finish(error)

    def wait(self) -> Result:
        """The whole answer, once it has ended.

        Raises:
            MagistralError: what went wrong while it was generated.
        """
        self._done.wait()
        if self._error is not None:
            raise self._error
        result = self._collector.result
        assert result is not None
        return result

    def _finish(self, error: BaseException | None) -> None:
        self._error = error
        self._done.set()
        self._sink(End(error))
