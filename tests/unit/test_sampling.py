"""What the sampler draws, seen from outside: support, distribution, and repeatability."""

from __future__ import annotations

import numpy as np
import pytest
from mlx_lm.sample_utils import apply_top_p

from magistral_mlx.backend import mx
from magistral_mlx.engine.sampling import Sampling, keep_nucleus, make_sampler
from magistral_mlx.errors import InvalidOption


def some_logits(seed: int, vocab_size: int = 500) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.standard_normal((1, vocab_size)).astype(np.float32) * 3)


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = some_logits(1)
    token = make_sampler(Sampling(temperature=0))(logits, 7)
    assert token.item() == np.argmax(np.array(logits))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("seed", range(5))
def test_the_nucleus_is_the_one_of_mlx_lm(seed: int, top_p: float) -> None:
    logprobs = some_logits(seed)
    logprobs = logprobs - mx.logsumexp(logprobs, axis=-1, keepdims=True)
    theirs = np.isfinite(np.array(apply_top_p(logprobs, top_p)))
    np.testing.assert_array_equal(np.isfinite(np.array(keep_nucleus(logprobs, top_p))), theirs)


def test_one_likely_token_is_a_nucleus_by_itself() -> None:
    logits = mx.array([[0.0, 20.0, 1.0]])
    kept = np.isfinite(np.array(keep_nucleus(logits, 0.95)))
    np.testing.assert_array_equal(kept, [[False, True, False]])


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20,000 positions; 27.9 is the 0.001 quantile for 9 degrees of freedom."""
    logits = some_logits(3, vocab_size=10) / 3
    sample = make_sampler(Sampling(temperature=1.0, top_p=1.0, seed=11))
    draws = mx.concatenate([sample(logits, position) for position in range(20_000)])
    seen = np.bincount(np.array(draws), minlength=10)
    expected = np.array(mx.softmax(logits, axis=-1))[0] * 20_000
    assert ((seen - expected) ** 2 / expected).sum() < 27.9


def test_a_token_depends_on_seed_and_position_alone() -> None:
    logits = some_logits(4)
    draw = make_sampler(Sampling(temperature=1.0, seed=5))
    again = make_sampler(Sampling(temperature=1.0, seed=5))
    forwards = [draw(logits, position).item() for position in range(30)]
    backwards = [again(logits, position).item() for position in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 5
    other = make_sampler(Sampling(temperature=1.0, seed=6))
    assert [other(logits, position).item() for position in range(30)] != forwards


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**32},
    ],
)
def test_a_value_out_of_range_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidOption, match=f"{next(iter(wrong))} is .*must be"):
        Sampling(**wrong)  # type: ignore[arg-type]
