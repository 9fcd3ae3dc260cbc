"""What a pass over several tokens costs, and how many guesses are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WORTH_IT = 1.05  # tokens for the price of one below which plain decoding is as good


@dataclass(frozen=True)
class PassCosts:
    """The cost of a pass by its rows, in passes of one row.

    points: (rows, cost), rising from (1, 1.0); what lies between them is interpolated. No pass
    has more rows than the last point.
    """

    points: tuple[tuple[int, float], ...]

    @property
    def most_rows(self) -> int:
        return self.points[-1][0]

    def up_to(self, rows: int) -> PassCosts:
        """The same with no pass of more rows."""
        fewer = [point for point in self.points if point[0] < rows]
        return PassCosts((*fewer, (rows, self(rows)))) if rows < self.most_rows else self

    def __call__(self, rows: int) -> float:
        below, cost = self.points[0]
        for above, next_cost in self.points[1:]:
            if rows <= above:
                share = (rows - below) / (above - below)
                return cost + share * (next_cost - cost)
            below, cost = above, next_cost
        return cost


@dataclass(frozen=True)
class DraftChoice:
    """How many guesses to check in the next pass, and the tokens it then gives for the price of
    one of plain decoding; 0 and 1.0 where none are worth it."""

    guesses: int
    gain: float


PLAIN = DraftChoice(0, 1.0)


def choose(chances: Sequence[float], costs: PassCosts, each: float = 0.0) -> DraftChoice:
    """The number of guesses that gives most tokens for their price.

    Args:
        chances: of the first guess, of the second if the first is right, and so on.
        each: the price of making one guess.
    """
    best, tokens, reached = PLAIN, 1.0, 1.0
    for guesses, chance in enumerate(chances[: costs.most_rows - 1], start=1):
        reached *= chance
        tokens += reached
        gain = tokens / (costs(guesses + 1) + guesses * each)
        if gain > max(best.gain, WORTH_IT):
            best = DraftChoice(guesses, gain)
    return best
