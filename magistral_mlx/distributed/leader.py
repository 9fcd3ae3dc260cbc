"""Rank 0's side: the other ranks are told what to do, and watched."""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from queue import Empty, SimpleQueue
from typing import Any

from magistral_mlx import __version__
from magistral_mlx.backend import mx
from magistral_mlx.distributed.group import Group
from magistral_mlx.distributed.link import PATIENCE, Link, read, write
from magistral_mlx.distributed.place import Place
from magistral_mlx.errors import MagistralError, RankLost
from magistral_mlx.measurements import Measurements
from magistral_mlx.memory.machine import Machine

TOKEN_BYTES = 16
_CONNECTING = 60.0  # seconds that all ranks have to connect


class Leader:
    """Rank 0 of the ranks that compute models together.

    error: why they no longer can, once a rank has been lost. machines: those of the other ranks.
    latency: seconds that a sum over all ranks takes.
    """

    def __init__(self, place: Place) -> None:
        """Wait for the other ranks.

        Raises:
            RankLost: one does not come, or has another version.
        """
        self.place = place
        self.error: RankLost | None = None
        self.on_lost: list[Callable[[], None]] = []  # each in a thread of its own
        self.group = Group(place)
        self.dropped: deque[int] = deque()  # caches that no one holds any more; from any thread
        self._numbers = iter(range(1, 1 << 62))
        self._lock = threading.Lock()
        self._replies: dict[int, SimpleQueue[Any]] = {}
        self._links: dict[int, Link] = {}
        self._machines: dict[int, Machine] = {}
        self._connect()
        self.machines = [self._machines[rank] for rank in sorted(self._machines)]
        self.latency = self.group.latency()

    def number(self) -> int:
        """Return a new number for a model or for caches."""
        return next(self._numbers)

    def tell(self, *message: Any) -> None:
        """Have all other ranks do something; they do so in the order in which they are told.

        Raises:
            RankLost: one has been lost.
        """
        self.check()
        if self.dropped:
            gone = [self.dropped.popleft() for _ in range(len(self.dropped))]
            self._send(["drop", gone])
        self._send(message)

    def ask(self, *message: Any) -> None:
        """Tell, and wait until all ranks have done it.

        Raises:
            MagistralError: one could not, as it says. RankLost: one has been lost.
        """
        self.tell(*message)
        self.wait()

    def wait(self) -> list[Any]:
        """Wait for the answer of each rank to what it was asked -> the answers, rank 1's first.

        Raises:
            MagistralError: one could not, as it says. RankLost: one has been lost.
        """
        answers, problems = [], []
        for rank in sorted(self._links):
            answer = self._answer(rank)
            if "error" in answer:
                problems.append(f"{self.place.name(rank)}: {answer['error']}")
            answers.append(answer.get("value"))
        if problems:
            raise MagistralError(problems[0])
        return answers

    def check(self) -> None:
        """Raises RankLost if a rank has been lost."""
        if self.error is not None:
            raise RankLost(str(self.error))

    def fail(self, what: str) -> None:
        """End the work of all ranks: what they hold is no longer the same."""
        with self._lock:
            if self.error is not None:
                return
            self.error = RankLost(
                f"{what}. The model cannot answer without it: see what that machine says, and "
                "start all of them again."
            )
        for link in self._links.values():
            link.close()
        self.group.tear()
        for call in list(self.on_lost):
            threading.Thread(target=call, daemon=True).start()

    def close(self) -> None:
        """Send the other ranks home."""
        if self.error is None:
            self.error = RankLost("the ranks have been sent home.")
            self._send(["bye"])
            for link in self._links.values():
                link.finish()

    def _send(self, message: Any) -> None:
        for link in self._links.values():
            link.send(message)

    def _answer(self, rank: int) -> Any:
        while True:
            self.check()
            with suppress(Empty):
                return self._replies[rank].get(timeout=0.5)

    def _connect(self) -> None:
        """Accept a connection from each rank, which knows the token by the ring."""
        host = self.place.addresses[0][0]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        token = secrets.token_bytes(TOKEN_BYTES)
        with socket.socket(family) as listening:
            listening.bind((host, 0))
            listening.listen(self.place.size)
            told = [listening.getsockname()[1], *token]
            mx.eval(self.group.from_leader(mx.array(told, mx.int32)))
            end = time.monotonic() + _CONNECTING
            while len(self._links) < self.place.size - 1:
                listening.settimeout(max(0.01, end - time.monotonic()))
                try:
                    connection, _ = listening.accept()
                except TimeoutError:
                    raise RankLost(
                        f"not all of the {self.place.size} ranks connected within "
                        f"{_CONNECTING:.0f} seconds; start all of them again."
                    ) from None
                self._welcome(connection, token)

    def _welcome(self, connection: socket.socket, token: bytes) -> None:
        connection.settimeout(PATIENCE)
        try:
            hello = read(connection)
            if not hmac.compare_digest(str(hello["token"]), token.hex()):
                raise ValueError
            rank, theirs = int(hello["rank"]), [str(one) for one in hello["versions"]]
            machine = _machine(**hello["machine"])
        except (OSError, EOFError, ValueError, KeyError, TypeError):
            connection.close()  # somebody else's
            return
        if theirs != versions():
            problem = (
                f"{self.place.name(rank)} has {_named(theirs)}, and rank 0 {_named(versions())}; "
                "install the same on all machines."
            )
            with suppress(OSError):
                write(connection, {"error": problem})
            raise RankLost(problem)
        write(connection, {"value": None})
        self._replies[rank] = SimpleQueue()
        self._machines[rank] = machine
        self._links[rank] = Link(connection, self._replies[rank].put, partial(self._lost, rank))

    def _lost(self, rank: int, reason: str) -> None:
        self.fail(f"{self.place.name(rank)} {reason}")


def versions() -> list[str]:
    """Return the versions that all ranks must have in common: of this package and of MLX."""
    return [__version__, version("mlx")]


def _machine(name: str, memory: int, limit: int, bandwidth: float | None) -> Machine:
    return Machine(name, memory, limit, measured=Measurements(bandwidth))


def _named(found: list[str]) -> str:
    return f"magistral-mlx {found[0]} with MLX {found[-1]}"
