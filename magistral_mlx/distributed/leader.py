"""Rank 0's side: the other ranks are told what to do, and watched."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from magistral_mlx.distributed.group import Group, ended_if_stuck
from magistral_mlx.distributed.link import Link
from magistral_mlx.distributed.meeting import confirm, meet
from magistral_mlx.distributed.place import Place
from magistral_mlx.errors import MagistralError, RankLost

_NOTICING = 3.0  # seconds within which a link notices that a rank has ended


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
        self.dropped: deque[int] = deque()  # caches that no one holds any more; from any thread
        self._numbers = iter(range(1, 1 << 62))
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._replies: dict[int, SimpleQueue[Any]] = {}
        self._links: dict[int, Link] = {}
        joined = meet(place)
        self.machines = [one.machine for one in joined]
        with ended_if_stuck():
            self.group = Group(place)
            confirm(joined, self.group)
            self.latency = self.group.latency()
        for one in joined:
            replies = self._replies[one.rank] = SimpleQueue()
            lost = partial(self._lost, one.rank)
            self._links[one.rank] = Link(one.connection, replies.put, lost)

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

    def ask(self, *message: Any) -> list[Any]:
        """Tell, and wait until all ranks have done it -> their answers, rank 1's first.

        Raises:
            MagistralError: one could not, as it says. RankLost: one has been lost.
        """
        self.tell(*message)
        return self.wait()

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

    def fail_pass(self, error: BaseException) -> None:
        """End the work of all ranks after a pass failed on this one, unless the end of another is
        why: the ring may notice it before the link does, which knows its name."""
        if isinstance(error, RuntimeError):  # as MLX's are
            self._failed.wait(_NOTICING)
        self.fail(f"a pass failed on rank 0 ({' '.join(str(error).split())})")

    def fail(self, what: str) -> None:
        """End the work of all ranks: what they hold is no longer the same."""
        with self._lock:
            if self.error is not None:
                return
            self.error = RankLost(
                f"{what}. The model cannot answer without it: see what that machine says, and "
                "start all of them again."
            )
        self._failed.set()
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

    def _lost(self, rank: int, reason: str) -> None:
        self.fail(f"{self.place.name(rank)} {reason}")
