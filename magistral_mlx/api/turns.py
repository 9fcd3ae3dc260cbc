"""Whose prompt is read next: a part of each in turn, and what several have in common only once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.engine.pictures import common

if TYPE_CHECKING:
    from magistral_mlx.api.running import Run

_WORTH_WAITING = 64  # tokens


class Turns:
    """The answers whose prompts are being read, the next one first."""

    def __init__(self) -> None:
        self._line: deque[Run] = deque()

    def __bool__(self) -> bool:
        return bool(self._line)

    def join(self, run: Run) -> None:
        """Let it wait for its turn, behind all others."""
        if run not in self._line:
            self._line.append(run)

    def leave(self, run: Run) -> None:
        """Take it out, if it is there."""
        if run in self._line:
            self._line.remove(run)

    def next(self, kept: Callable[[NDArray[np.int64]], int]) -> Run | None:
        """Take out whose turn it is.

        One that has not begun is passed over while another is about to read the same beginning,
        which can be copied then.

        Args:
            kept: how many leading tokens of a prompt are kept anyway, by its keys.
        """
        for run in self._line:
            if not self._can_wait(run, kept):
                self._line.remove(run)
                return run
        return None

    def _can_wait(self, run: Run, kept: Callable[[NDArray[np.int64]], int]) -> bool:
        if run.generation is not None:
            return False
        gain = max((_ahead(run, other) for other in self._line), default=0)
        return gain >= _WORTH_WAITING and gain - kept(run.keys) >= _WORTH_WAITING


def _ahead(run: Run, other: Run) -> int:
    """Tokens that a prompt shares with one that is being read, where that has yet to read them."""
    if other.generation is None or not other.filling:
        return 0
    shared = common(run.keys, other.keys)
    return shared if other.generation.caches[0].length < shared else 0
