"""Repeated measurements: medians, their spread, and when to stop."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ENOUGH = 0.05  # spread at which more rounds are not needed
LEAST, MOST = 3, 9


@dataclass(frozen=True)
class Figure:
    """A repeated measurement. spread: the middle half of the values over their median."""

    median: float
    spread: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The figure of at least one value."""
        middle = statistics.median(values)
        if len(values) < 2 or not middle:
            return cls(middle, 0.0, tuple(values))
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, (high - low) / middle, tuple(values))

    @property
    def steady(self) -> bool:
        return len(self.values) >= LEAST and self.spread <= ENOUGH


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Ours over theirs, round by round, so that what slows a round slows both."""
    return Figure.of([a / b for a, b in zip(ours, theirs, strict=True)])


def repeat(
    measure: Callable[[], Sequence[float]], least: int = LEAST, most: int = MOST
) -> list[tuple[float, ...]]:
    """Call `measure` until all that it returns is steady, or `most` times -> its values, by round.

    Each call gives one value of every measurement, in the same order.
    """
    rounds: list[tuple[float, ...]] = []
    while len(rounds) < most:
        rounds.append(tuple(measure()))
        columns = zip(*rounds, strict=True)
        if len(rounds) >= least and all(Figure.of(column).steady for column in columns):
            break
    return rounds
