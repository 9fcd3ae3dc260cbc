"""Which request prefills next, and when.

A part of each in turn, and what several have in common only once. Between two parts of a prompt
those who decode get as much time as prompts took, and one pass at least, so that long prompts and
those who decode have half of the time each. A prompt's first part does not wait for that: most
prompts have no other, and the sooner one is read the sooner it shares the passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.engine.images import common

if TYPE_CHECKING:
    from magistral_mlx.runtime.request import Request

_WORTH_WAITING = 64  # tokens


class PrefillQueue:
    """The requests whose prompts are being read, the next one first."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()
        self._owed = 0.0  # seconds, to those who decode

    def __bool__(self) -> bool:
        return bool(self._queue)

    def read(self, seconds: float) -> None:
        """A part of a prompt took so long, for which those who decode had to wait."""
        self._owed = max(0.0, self._owed) + seconds

    def decoded(self, seconds: float) -> None:
        """A pass for those who decode took so long."""
        self._owed -= seconds

    def nobody_decodes(self) -> None:
        """Nobody can use the time that is owed."""
        self._owed = 0.0

    def join(self, request: Request) -> None:
        """Let it wait for its turn, behind all others."""
        if request not in self._queue:
            self._queue.append(request)

    def leave(self, request: Request) -> None:
        """Take it out, if it is there."""
        if request in self._queue:
            self._queue.remove(request)

    def next(self, kept: Callable[[NDArray[np.int64]], int]) -> Request | None:
        """Take out whose turn it is; None if it is nobody's.

        One that has not begun is passed over while another is about to read the same beginning,
        which can be copied then.

        Args:
            kept: how many leading tokens of a prompt are kept anyway, by its keys.
        """
        for request in self._queue:
            begun = request.sequence is not None
            if not (begun and self._owed > 0) and not self._can_wait(request, kept):
                self._queue.remove(request)
                return request
        return None

    def _can_wait(self, request: Request, kept: Callable[[NDArray[np.int64]], int]) -> bool:
        if request.sequence is not None:
            return False
        gain = max((_ahead(request, other) for other in self._queue), default=0)
        return gain >= _WORTH_WAITING and gain - kept(request.token_keys) >= _WORTH_WAITING


def _ahead(request: Request, other: Request) -> int:
    """Tokens that a prompt shares with one that is being read, where that has yet to read them."""
    if other.sequence is None or not other.prefilling:
        return 0
    shared = common(request.token_keys, other.token_keys)
    return shared if other.sequence.caches.length < shared else 0
