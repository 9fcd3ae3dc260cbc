"""Admission of requests: how many wait, and how much memory their images take meanwhile."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from magistral_mlx.runtime.request import Request
from magistral_mlx.server.errors import Busy, Unavailable

STOPPING = "the server is shutting down."
_WAITING_BYTES = 1 << 30  # of images of waiting requests
_REMEMBERED = 32  # answers whose duration tells when a place may be free


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue, until its answer has ended.

    request: that of the runtime, once it is queued there. image_bytes: memory that its images take.
    """

    cancel: Callable[[], None]
    request: Request | None = None
    image_bytes: int = 0

    @property
    def running(self) -> bool:
        """Whether its generation has begun."""
        return self.request is not None and self.request.times.started is not None

    @property
    def duration(self) -> float | None:
        """Seconds of its generation; None unless it has begun and ended."""
        times = None if self.request is None else self.request.times
        if times is None or times.started is None or times.finished is None:
            return None
        return times.finished - times.started


class AdmissionQueue:
    """The requests of a server, waiting and running."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._requests: set[QueuedRequest] = set()
        self._counting = 0
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self.stopping = False

    @property
    def running(self) -> int:
        """Requests whose answers are being generated."""
        return sum(request.running for request in self._requests)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._requests) - self.running

    @property
    def counting(self) -> int:
        """Requests whose tokens are being counted."""
        return self._counting

    def admit(self, cancel: Callable[[], None]) -> QueuedRequest:
        """Add a request; `cancel` stops it.

        Raises:
            Busy: too many wait already.
            Unavailable: the server is shutting down.
        """
        if self.stopping:
            raise Unavailable(STOPPING)
        self._check_length()
        request = QueuedRequest(cancel)
        self._requests.add(request)
        return request

    @contextmanager
    def count(self) -> Iterator[None]:
        """Admit a request for a count of tokens. Raises Busy if too many wait already."""
        self._check_length()
        self._counting += 1
        try:
            yield
        finally:
            self._counting -= 1

    def reserve_images(self, request: QueuedRequest, size: int) -> None:
        """Let images of `size` bytes wait with their request.

        Raises:
            Busy: the images of other waiting requests take too much already.
        """
        held = sum(other.image_bytes for other in self._requests if not other.running)
        if size and held and held + size > _WAITING_BYTES:
            raise Busy(
                f"images of {held >> 20:,} MiB wait already, and there is no room for "
                f"{size >> 20:,} more. Try again later.",
                self._retry_after(),
            )
        request.image_bytes = size

    def remove(self, request: QueuedRequest) -> None:
        """Remove a request that is over, if it is there."""
        if request not in self._requests:
            return
        self._requests.discard(request)
        if request.duration is not None:
            self._durations.append(request.duration)

    def stop(self, *, running: bool) -> None:
        """Admit nothing more and cancel waiting requests, and running ones if `running`."""
        self.stopping = True
        for request in list(self._requests):
            if running or not request.running:
                request.cancel()

    def _check_length(self) -> None:
        waiting = self.waiting + self._counting
        if waiting >= self._max_waiting:
            raise Busy(
                f"{waiting} requests wait already, as many as this server allows. Try again later.",
                self._retry_after(),
            )

    def _retry_after(self) -> int:
        """Seconds until a place may be free, by the durations of the last answers."""
        durations = self._durations
        mean = sum(durations) / len(durations) if durations else 1.0
        return min(60, max(1, math.ceil(mean)))
