"""pass@1 with its interval, and the paired test of two runs."""

from __future__ import annotations

import random
from itertools import product
from math import comb

import pytest

from magistral_mlx.evaluation.statistics import paired, pass_at_1


def test_pass_at_1_is_the_mean_of_the_questions():
    estimate = pass_at_1([[1, 0], [1, 1], [0, 0], [1, 1, 1, 0]])
    assert estimate is not None
    assert estimate.mean == pytest.approx((0.5 + 1 + 0 + 0.75) / 4)
    assert 0 < estimate.low < estimate.mean < estimate.high < 1


def test_the_interval_is_wilsons_with_one_answer_a_question():
    """Wilson (1927) for 8 of 10: 0.490 to 0.943."""
    estimate = pass_at_1([[1]] * 8 + [[0]] * 2)
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((0.4902, 0.9433), abs=2e-2)


@pytest.mark.parametrize(("score", "bound"), [(1, "low"), (0, "high")])
def test_all_alike_is_no_certainty(score: int, bound: str):
    estimate = pass_at_1([[score, score]] * 30)
    assert estimate is not None
    assert estimate.mean == score
    assert 0.85 < abs(getattr(estimate, bound) - (1 - score)) < 0.9


def test_epochs_that_agree_add_no_information():
    once = pass_at_1([[1], [0]] * 15)
    often = pass_at_1([[1] * 8, [0] * 8] * 15)
    assert once is not None and often is not None
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.05)


def test_epochs_that_vary_narrow_the_interval():
    once = pass_at_1([[1], [0]] * 15)
    often = pass_at_1([[1, 0, 1, 0, 1, 0, 1, 0]] * 30)
    assert once is not None and often is not None
    assert often.high - often.low < 0.5 * (once.high - once.low)


def test_without_scores_there_is_no_estimate():
    assert pass_at_1([]) is None
    assert pass_at_1([[], []]) is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = random.Random(5)
    covered = 0
    for _ in range(400):
        chances = [rng.betavariate(2, 1) for _ in range(60)]
        scores = [[int(rng.random() < chance) for _ in range(3)] for chance in chances]
        estimate = pass_at_1(scores)
        assert estimate is not None
        covered += estimate.low <= 2 / 3 <= estimate.high
    assert 0.92 <= covered / 400 <= 0.98


@pytest.mark.parametrize(
    ("better", "worse", "same"), [(9, 1, 20), (5, 5, 3), (3, 0, 0), (1, 14, 2)]
)
def test_with_one_answer_a_question_the_test_is_mcnemars(better: int, worse: int, same: int):
    first = {str(n): [0] for n in range(better)} | {f"w{n}": [1] for n in range(worse)}
    second = {str(n): [1] for n in range(better)} | {f"w{n}": [0] for n in range(worse)}
    first |= {f"s{n}": [n % 2] for n in range(same)}
    second |= {f"s{n}": [n % 2] for n in range(same)}
    result = paired(first, second)
    assert result is not None
    tail = sum(comb(better + worse, k) for k in range(max(better, worse), better + worse + 1))
    assert result.p == pytest.approx(min(1, 2 * tail / 2 ** (better + worse)))
    assert (result.better, result.worse) == (better, worse)
    assert result.difference == pytest.approx((better - worse) / (better + worse + same))


def test_the_p_value_counts_the_signs_that_are_as_far_from_zero():
    first = {"a": [0, 0, 1], "b": [1, 0, 0], "c": [1, 1, 1], "d": [0.25], "e": [1, 1, 0]}
    second = {"a": [1, 1], "b": [1, 1], "c": [1, 0], "d": [0.75], "e": [1]}
    result = paired(first, second)
    assert result is not None
    differences = [2 / 3, 2 / 3, -1 / 2, 1 / 2, 1 / 3]
    observed = abs(sum(differences))
    flips = [
        abs(sum(sign * each for sign, each in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=5)
    ]
    expected = sum(flip >= observed - 0.01 for flip in flips) / len(flips)
    assert result.p == pytest.approx(expected)


def test_only_questions_that_both_answered_are_compared():
    result = paired({"a": [1], "b": [0], "c": [1]}, {"b": [1], "c": [1], "d": [0], "e": []})
    assert result is not None
    assert (result.questions, result.first, result.second) == (2, 0.5, 1.0)
    assert paired({"a": [1]}, {"b": [1]}) is None


def test_equal_runs_do_not_differ():
    scores = {str(n): [n % 3 == 0] for n in range(12)}
    result = paired(scores, scores)
    assert result is not None
    assert (result.difference, result.p) == (0, 1)


def test_so_many_fractions_that_they_are_rounded_have_about_the_exact_p_value(
    monkeypatch: pytest.MonkeyPatch,
):
    rng = random.Random(4)
    first = {str(n): [rng.random() for _ in range(3)] for n in range(100)}
    second = {id: [rng.random() + 0.05 for _ in range(7)] for id in first}
    p = []
    for sums in (1 << 24, 1 << 16):
        monkeypatch.setattr("magistral_mlx.evaluation.statistics._SUMS", sums)
        result = paired(first, second)
        assert result is not None
        p.append(result.p)
    assert p[0] != p[1] == pytest.approx(p[0], rel=0.01)


def test_a_far_tail_is_as_exact_as_the_middle():
    first = {str(n): [0] for n in range(1500)}
    second = {str(n): [n < 1000] for n in range(1500)} | {"0": [0]}
    first |= {str(n): [1] for n in range(1000, 1300)}
    result = paired(first, second)
    assert result is not None
    tail = sum(comb(1299, k) for k in range(999, 1300))
    assert result.p == pytest.approx(2 * tail / 2**1299)
