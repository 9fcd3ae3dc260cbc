"""Statistics of scores: pass@1 with a confidence interval, and a paired test of two runs.

Questions are the sampling unit: answers of several epochs to one question are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_Z = 1.959963984540054  # of a two-sided interval of 95 %
_SUMS = 1 << 18  # sums of differences whose chances are computed, at most
_HALVINGS = 512  # of chances that are made up for at once


@dataclass(frozen=True)
class Estimate:
    """A mean score and its 95 % confidence interval, all from 0 to 1."""

    mean: float
    low: float
    high: float


def pass_at_1(scores: Sequence[Sequence[float]]) -> Estimate | None:
    """Estimate the chance that one answer is right; None without a score.

    The interval is Wilson's, with as many answers as would give the standard error of the
    questions' means: at least the number of questions, at most that of answers. It stays within 0
    and 1, and is none of width 0 where all answers are right.

    Args:
        scores: for each question the scores of its answers, 0 to 1.
    """
    means = [sum(each) / len(each) for each in scores if each]
    if not means:
        return None
    questions, answers = len(means), sum(len(each) for each in scores)
    mean = sum(means) / questions
    effective = float(questions)
    if questions > 1 and 0 < mean < 1:
        variance = sum((each - mean) ** 2 for each in means) / (questions - 1)
        wanted = mean * (1 - mean) * questions / variance if variance else answers
        effective = min(max(wanted, questions), answers)
    centre = (mean + _Z**2 / (2 * effective)) / (1 + _Z**2 / effective)
    half = (
        _Z
        / (1 + _Z**2 / effective)
        * math.sqrt(mean * (1 - mean) / effective + _Z**2 / (4 * effective**2))
    )
    # The bounds at 0 and 1 are exact; rounding may leave them a last bit off.
    return Estimate(mean, min(max(0.0, centre - half), mean), max(min(1.0, centre + half), mean))


@dataclass(frozen=True)
class Paired:
    """Two runs over the same questions.

    difference: mean score of the second less that of the first. low, high: its 95 % confidence
    interval. p: of the exact sign-flip test, two-sided. better, worse: questions that the second
    answers better, and worse.
    """

    questions: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float
    better: int
    worse: int


def paired(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]]
) -> Paired | None:
    """Compare the questions that both runs answered; None if there are none.

    The test flips the signs of the questions' differences in every way, and counts how many give
    a sum as far from 0: with one answer a question that is McNemar's exact test.
    """
    shared = [id for id in first if first[id] and second.get(id)]
    if not shared:
        return None
    pairs = [(_mean(first[id]), _mean(second[id])) for id in shared]
    differences = [b - a for a, b in pairs]
    count = len(shared)
    mean = float(sum(differences)) / count
    spread = float(np.std([float(each) for each in differences], ddof=1)) if count > 1 else 0.0
    half = _student(count - 1) * spread / math.sqrt(count) if count > 1 else 1.0
    return Paired(
        questions=count,
        first=float(sum(a for a, _ in pairs)) / count,
        second=float(sum(b for _, b in pairs)) / count,
        difference=mean,
        low=max(-1.0, mean - half),
        high=min(1.0, mean + half),
        p=_sign_flip(differences),
        better=sum(each > 0 for each in differences),
        worse=sum(each < 0 for each in differences),
    )


def _mean(scores: Sequence[float]) -> Fraction:
    # Scores such as edit distances are taken to a thousandth, so that the test stays exact.
    return sum((Fraction(round(score * 1000), 1000) for score in scores), Fraction()) / len(scores)


def _sign_flip(differences: Sequence[Fraction]) -> float:
    """Return the two-sided p-value of the sign-flip test, by the distribution of all sums.

    Sums so far from 0 that all of them together have too small a chance to show in the p-value are
    left out. Where more than `_SUMS` remain, the differences are rounded to a coarser grid, which
    changes the p-value by a small fraction of itself.
    """
    scale = math.lcm(*(each.denominator for each in differences))
    steps = [int(each * scale) for each in differences if each]
    unit = math.gcd(*steps)
    steps = [step // unit for step in steps]
    reach = _reach(steps)
    if reach > _SUMS:
        coarser = -(-reach // _SUMS)
        steps = [each for each in (round(step / coarser) for step in steps) if each]
        reach = _reach(steps)
    # Of half the sum plus half the most, which is that of the steps with a plus: low, low + 1, …
    chances, low, most = np.ones(1), 0, 0
    for done, step in enumerate(sorted(map(abs, steps)), 1):
        both = np.zeros(len(chances) + step)
        both[: len(chances)] = chances
        both[step:] += chances
        if done % _HALVINGS == 0:
            both *= 2.0**-_HALVINGS
        most += step
        first = max(0, (most - reach + 1) // 2 - low)
        chances = both[first : (most + reach) // 2 - low + 1]
        low += first
    far = (most + abs(sum(steps))) // 2 - low
    return min(1.0, 2 * float(chances[far:].sum()) * 2.0 ** -(len(steps) % _HALVINGS))


def _reach(steps: Sequence[int]) -> int:
    """Return how far from 0 sums are followed.

    Hoeffding's bound, and Lévy's inequality for the sums on the way, give those beyond it a chance
    below 4 exp(-40) times that bound's of the observed sum.
    """
    return min(
        sum(map(abs, steps)), 1 + math.isqrt(sum(steps) ** 2 + 80 * sum(step**2 for step in steps))
    )


def _student(degrees: int) -> float:
    """Return the 97.5 % point of Student's distribution, by Cornish and Fisher's expansion.

    Exact points stand in for the expansion at few degrees of freedom.
    """
    exact = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
    if degrees in exact:
        return exact[degrees]
    z = _Z
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
