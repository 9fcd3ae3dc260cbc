"""Cost of a pass over several tokens, and the number of draft tokens that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONG_CONTEXT = 8192  # tokens from which a pass of more rows than a vector kernel takes is dearer
WORTH_IT = 1.05  # gain from which speculation is used instead of plain decoding


@dataclass(frozen=True)
class PassCosts:
    """Cost of a pass by its number of rows, relative to a pass of one row.

    points: (rows, cost), rising from (1, 1.0), interpolated linearly. No pass has more rows than
    the last point. long: points of passes over `LONG_CONTEXT` tokens or more, if measured.
    """

    points: tuple[tuple[int, float], ...]
    long: tuple[tuple[int, float], ...] = ()

    @property
    def most_rows(self) -> int:
        return self.points[-1][0]

    def at_long_context(self) -> PassCosts:
        """The costs of a pass over `LONG_CONTEXT` tokens or more."""
        return PassCosts(self.long or self.points)

    def up_to(self, rows: int) -> PassCosts:
        """The same costs, limited to passes of at most `rows` rows."""
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
    """Number of draft tokens for the next pass, and the expected speed relative to plain decoding;
    0 and 1.0 if drafting does not pay."""

    guesses: int
    gain: float


PLAIN = DraftChoice(0, 1.0)


def choose(chances: Sequence[float], costs: PassCosts, each: float = 0.0) -> DraftChoice:
    """Choose the number of draft tokens with the highest expected speed.

    Args:
        chances: acceptance probability of the first draft token, of the second if the first is
            accepted, and so on.
        each: cost of drafting one token, in passes of one row.
    """
    best, tokens, reached = PLAIN, 1.0, 1.0
    for guesses, chance in enumerate(chances[: costs.most_rows - 1], start=1):
        reached *= chance
        tokens += reached
        gain = tokens / (costs(guesses + 1) + guesses * each)
        if gain > max(best.gain, WORTH_IT):
            best = DraftChoice(guesses, gain)
    return best
