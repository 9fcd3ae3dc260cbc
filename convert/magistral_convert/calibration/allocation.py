"""Bits of each matrix for a given size: the least total cost that fits.

A matrix has a choice of schemes, each with its bytes and its cost. All begin with the smallest;
then the step with the most gained for its bytes is taken, again and again, as long as one fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from magistral_mlx.quantization import Quantization


@dataclass(frozen=True)
class SchemeChoice:
    """A scheme of a matrix: its bytes, and what its error costs."""

    scheme: Quantization
    nbytes: int
    cost: float


Choices = dict[str, list[SchemeChoice]]  # by the name of a matrix


def allocate(choices: Mapping[str, Sequence[SchemeChoice]], budget: int) -> dict[str, SchemeChoice]:
    """Return a choice for each matrix, within a budget of bytes in all.

    Raises:
        ValueError: the smallest choices do not fit.
    """
    hulls = {name: _hull(of_matrix) for name, of_matrix in choices.items()}
    places = dict.fromkeys(hulls, 0)
    left = budget - sum(hull[0].nbytes for hull in hulls.values())
    if left < 0:
        raise ValueError("the smallest choices do not fit")
    steps = [(-_gain(hull, 0), name) for name, hull in hulls.items() if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, name = heapq.heappop(steps)
        hull, place = hulls[name], places[name]
        more = hull[place + 1].nbytes - hull[place].nbytes
        if more > left:
            continue  # others may be smaller
        left -= more
        places[name] = place + 1
        if place + 2 < len(hull):
            heapq.heappush(steps, (-_gain(hull, place + 1), name))
    return {name: hull[places[name]] for name, hull in hulls.items()}


def _gain(hull: Sequence[SchemeChoice], place: int) -> float:
    """Cost that the next choice saves for each byte."""
    here, following = hull[place], hull[place + 1]
    return (here.cost - following.cost) / (following.nbytes - here.nbytes)


def _hull(choices: Sequence[SchemeChoice]) -> list[SchemeChoice]:
    """Return the choices on the lower convex hull of cost over bytes, the smallest first."""
    hull: list[SchemeChoice] = []
    for choice in sorted(choices, key=lambda choice: (choice.nbytes, choice.cost)):
        if hull and (choice.nbytes == hull[-1].nbytes or choice.cost >= hull[-1].cost):
            continue
        while len(hull) > 1 and _gain([hull[-2], hull[-1]], 0) <= _gain([hull[-1], choice], 0):
            hull.pop()
        hull.append(choice)
    return hull
