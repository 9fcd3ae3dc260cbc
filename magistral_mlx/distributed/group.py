"""Tensors between ranks, over MLX's distributed backends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from magistral_mlx.backend import mx
from magistral_mlx.distributed.place import Place
from magistral_mlx.errors import RankLost

_CONNECTING = 60.0  # seconds until a process that MLX cannot connect is ended
_SUMS = 9  # that are timed


class Group:
    """The collective operations that a model needs; all ranks call them in the same order.

    calls, nbytes: operations so far, and bytes of this rank's arrays in them.
    """

    def __init__(self, place: Place) -> None:
        """Connect to the other ranks, all of which are there.

        Raises:
            RankLost: they cannot be reached.
        """
        self.place = place
        self.calls = self.nbytes = 0
        try:
            self._group = mx.distributed.init(strict=True, backend=place.backend)
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise RankLost(
                f"{place.name(place.rank)} cannot connect to the other ranks: {text}. Check that "
                "all of them were started, and that the addresses are theirs and free."
            ) from None

    def sum(self, x: mx.array) -> mx.array:
        """Sum an array over all ranks."""
        self._count(x.nbytes)
        return mx.distributed.all_sum(x, group=self._group)

    def from_leader(self, x: mx.array | tuple[tuple[int, ...], mx.Dtype]) -> mx.array:
        """Rank 0's array, on all ranks; the others give its shape and dtype."""
        return self.sum(x if isinstance(x, mx.array) else mx.zeros(*x))

    def latency(self) -> float:
        """Measure the seconds that the sum of a number over all ranks takes, the median of some."""
        seconds = []
        for _ in range(_SUMS):
            start = time.perf_counter()
            mx.eval(self.sum(mx.ones(1)))
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    def send(self, x: mx.array) -> mx.array:
        """Send an array to the next rank, the last one's to rank 0."""
        self._count(x.nbytes)
        target = (self.place.rank + 1) % self.place.size
        return mx.distributed.send(x, target, group=self._group)

    def receive(self, shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
        """Receive an array from the rank before, on rank 0 from the last."""
        source = (self.place.rank - 1) % self.place.size
        return mx.distributed.recv(shape, dtype, source, group=self._group)

    def _count(self, nbytes: int) -> None:
        self.calls += 1
        self.nbytes += nbytes

    def tear(self) -> None:
        """Close the ring's connections, on which MLX's threads would wait, busily, for ever.

        MLX has no call for it; the connections are found by their ports.
        """
        ports = {port for _, port in self.place.addresses}
        for name in os.listdir("/dev/fd"):
            with suppress(OSError, ValueError):
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    _shut_if(int(name), ports)


@contextmanager
def ended_if_stuck(seconds: float = _CONNECTING) -> Iterator[None]:
    """End the process, by SIGALRM, if MLX has not connected the ranks after so many seconds.

    It keeps the interpreter to itself while it waits, so no thread of Python's can.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _shut_if(descriptor: int, ports: set[int]) -> None:
    """Shut a connection down if either end has one of these ports."""
    copy = socket.socket(fileno=os.dup(descriptor))
    with copy:
        if copy.family in (socket.AF_INET, socket.AF_INET6) and copy.type == socket.SOCK_STREAM:
            ends = {copy.getsockname()[1], copy.getpeername()[1]}
            if ends & ports:
                copy.shutdown(socket.SHUT_RDWR)
