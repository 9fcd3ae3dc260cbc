"""The sampler against mlx-lm's and transformers', on the same logits.

mlx-lm filters before the temperature, we after it, as transformers does; so for mlx-lm the logits
are scaled first. Distributions are compared by chi-square over 10,000 draws, with fixed seeds; the
bound is the 0.001 quantile for the degrees of freedom at hand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mlx_lm.sample_utils import (
    apply_min_p,
    apply_top_k,
    apply_top_p,
    make_logits_processors,
)
from mlx_lm.sample_utils import make_sampler as make_mlx_lm_sampler
from numpy.typing import NDArray
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from magistral_mlx.backend import mx
from magistral_mlx.engine.filters import keep_likely
from magistral_mlx.engine.penalties import penalise_repetition, penalise_use
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.engine.sampling import Sampling

DRAWS = 10_000
NO_PROMPT = np.array([0], np.int32)


def some_logits(seed: int, vocab_size: int = 500, spread: float = 3) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.standard_normal((1, vocab_size)).astype(np.float32) * spread)


def logprobs_of(logits: mx.array) -> mx.array:
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def support(logits: mx.array) -> NDArray[np.bool_]:
    return np.isfinite(np.array(logits))[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
def test_a_nucleus_is_the_one_of_mlx_lm(seed: int, top_p: float) -> None:
    logits = logprobs_of(some_logits(seed))
    ours, theirs = support(keep_likely(logits, top_p=top_p)), support(apply_top_p(logits, top_p))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.95, 0.999])
def test_a_nucleus_of_the_full_vocabulary_is_exact(seed: int, top_p: float) -> None:
    """The one that float64 finds. mlx-lm's sums in float32 miss up to 3e-4 of its mass."""
    logits = logprobs_of(some_logits(seed, 131_072))
    likely = np.exp(np.array(logits)[0].astype(np.float64))
    likely /= likely.sum()
    order = np.argsort(-likely)
    exact = np.zeros(131_072, bool)
    exact[order[np.cumsum(likely[order]) - likely[order] < top_p]] = True
    ours, theirs = support(keep_likely(logits, top_p=top_p)), support(apply_top_p(logits, top_p))
    np.testing.assert_array_equal(ours, exact)
    assert likely[ours != theirs].sum() < 3e-4


@pytest.mark.parametrize("vocab_size", [500, 131_072])
@pytest.mark.parametrize("top_k", [1, 2, 40, 499])
def test_top_k_is_the_one_of_mlx_lm(vocab_size: int, top_k: int) -> None:
    logits = logprobs_of(some_logits(1, vocab_size))
    ours, theirs = support(keep_likely(logits, top_k=top_k)), support(apply_top_k(logits, top_k))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("vocab_size", [500, 131_072])
@pytest.mark.parametrize("min_p", [0.01, 0.05, 0.2, 1.0])
def test_min_p_is_the_one_of_mlx_lm(vocab_size: int, min_p: float) -> None:
    logits = logprobs_of(some_logits(2, vocab_size))
    ours, theirs = support(keep_likely(logits, min_p=min_p)), support(apply_min_p(logits, min_p))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.6, "min_p": 0.1},
        {"temperature": 0.3, "top_k": 3, "top_p": 0.99, "min_p": 0.01},
    ],
)
def test_filters_together_are_those_of_transformers(seed: int, options: dict[str, Any]) -> None:
    logits = some_logits(seed)
    theirs = torch.from_numpy(np.array(logits))
    for warp in (
        TemperatureLogitsWarper(options["temperature"]),
        TopKLogitsWarper(options["top_k"]),
        TopPLogitsWarper(options["top_p"]),
        MinPLogitsWarper(options["min_p"]),
    ):
        theirs = warp(None, theirs)
    filters = {name: value for name, value in options.items() if name != "temperature"}
    ours = keep_likely(logits / options["temperature"], **filters)
    np.testing.assert_array_equal(support(ours), np.isfinite(theirs.numpy())[0])


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "top_p": 1.0},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "top_p": 1.0, "top_k": 5},
        {"temperature": 0.6, "top_p": 0.9},
    ],
)
def test_draws_are_distributed_as_mlx_lm_s(options: dict[str, Any]) -> None:
    logits = some_logits(3, vocab_size=30, spread=1)
    ours = Sampler(Sampling(seed=11, **options), NO_PROMPT, 30)
    draws = mx.concatenate([ours.draw(logits, position).token for position in range(DRAWS)])
    scaled = logprobs_of(logits / options["temperature"])
    theirs = make_mlx_lm_sampler(**{"temp": 1.0, **options_of_mlx_lm(options)})
    mx.random.seed(5)
    their_draws = theirs(mx.broadcast_to(scaled, (DRAWS, 30)))
    counts = np.stack([np.bincount(np.array(d), minlength=30) for d in (draws, their_draws)])
    counts = counts[:, counts.sum(axis=0) > 0]
    expected = counts.sum(axis=0) / 2
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi_square_bound(counts.shape[1] - 1)


def options_of_mlx_lm(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "temperature"}


def chi_square_bound(freedom: int) -> float:
    """The 0.001 quantile of chi-square (Wilson and Hilferty's approximation)."""
    ratio = 2 / (9 * freedom)
    return freedom * (1 - ratio + 3.09 * ratio**0.5) ** 3


def test_the_repetition_penalty_is_that_of_transformers_and_mlx_lm() -> None:
    logits = some_logits(4)
    tokens = np.random.default_rng(0).integers(0, 500, 60)
    ours = np.array(penalise_repetition(logits, mx.array(tokens), 1.3))
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(
        torch.from_numpy(tokens)[None], torch.from_numpy(np.array(logits))
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
    (process,) = make_logits_processors(repetition_penalty=1.3, repetition_context_size=60)
    np.testing.assert_allclose(ours, np.array(process(mx.array(tokens), logits + 0)), rtol=1e-6)


def test_presence_and_frequency_penalties_are_those_of_mlx_lm() -> None:
    logits = some_logits(5)
    tokens = np.random.default_rng(0).integers(0, 50, 60)
    counts = mx.array(np.bincount(tokens, minlength=500).astype(np.float32))[None]
    theirs = logits + 0
    for process in make_logits_processors(
        presence_penalty=0.5,
        presence_context_size=60,
        frequency_penalty=0.25,
        frequency_context_size=60,
    ):
        theirs = process(mx.array(tokens), theirs)
    ours = penalise_use(logits, counts, 0.5, 0.25)
    np.testing.assert_allclose(np.array(ours), np.array(theirs), rtol=1e-5, atol=1e-5)
