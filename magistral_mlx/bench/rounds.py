"""Repeated measurements: medians, spread, and the stopping rule."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ENOUGH = 0.05  # spread at which no more rounds are needed
LEAST, MOST = 3, 9  # rounds


@dataclass(frozen=True)
class Figure:
    """A repeated measurement. spread: interquartile range over the median."""

    median: float
    spread: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Summarize one or more values."""
        middle = statistics.median(values)
        if len(values) < 2 or not middle:
            return cls(middle, 0.0, tuple(values))
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, (high - low) / middle, tuple(values))

    @property
    def steady(self) -> bool:
        return len(self.values) >= LEAST and self.spread <= ENOUGH


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Figure:
    """Ratios of ours to theirs by round, so that a slow round affects both alike."""
    return Figure.of([a / b for a, b in zip(ours, theirs, strict=True)])


def repeat(
    measure: Callable[[], Sequence[float]], least: int = LEAST, most: int = MOST
) -> list[tuple[float, ...]]:
    """Call `measure` until all its values are steady, or `most` times; return the values by round.

    Each call returns one value of every measurement, in the same order.
    """
    rounds: list[tuple[float, ...]] = []
    while len(rounds) < most:
        rounds.append(tuple(measure()))
        columns = zip(*rounds, strict=True)
        if len(rounds) >= least and all(Figure.of(column).steady for column in columns):
            break
    return rounds
