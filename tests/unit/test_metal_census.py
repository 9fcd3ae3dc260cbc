"""The census of Metal's work: no change adds a dispatch, a copy or a slower kernel unnoticed."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metal_census import CHUNK, census, ideal_bytes
from benchmarks.metal_rules import Array
from magistral_mlx.backend import mx
from magistral_mlx.cache.buffer import Buffer

CONTEXT = 8192
HEAD_SCALES = 131_072 * 5120 // 64 * 2 * 2  # bytes of float32 scales and biases beyond 16 bits
WINDOW = 40 * 2 * 8 * 128 * 2 * 300  # bytes of 300 tokens in 16 bits


def test_a_decoded_token_takes_fewer_dispatches_and_no_more_bytes_than_mlx_lms() -> None:
    ours, theirs = (census(who, "full", CONTEXT, 1) for who in ("ours", "mlx-lm"))
    assert ours.dispatches <= 569 and ours.dispatches < theirs.dispatches
    assert ours.moved < theirs.moved + HEAD_SCALES and ours.copied == 0
    assert ours.moved <= 1.03 * ideal_bytes("full", CONTEXT)
    assert ours.kernels["qmv"] == 161  # four products a layer, and the head


@pytest.mark.parametrize("cache", ["8/8", "4/4"])
def test_a_token_over_a_packed_cache_takes_fewer_dispatches_and_copies_nothing(cache: str) -> None:
    ours, theirs = (census(who, cache, CONTEXT, 1) for who in ("ours", "mlx-lm"))
    assert ours.dispatches <= 1049 and ours.dispatches < theirs.dispatches
    assert ours.moved <= 1.02 * ideal_bytes(cache, CONTEXT) and ours.copied == 0
    assert ours.moved < theirs.moved + HEAD_SCALES + WINDOW
    assert not {"qmm_n", "dequantize"} & {k for k, n in ours.kernels.items() if n > 1}


@pytest.mark.parametrize(
    ("context", "rows", "dispatches", "beyond"),
    [
        (128, 1, 769, HEAD_SCALES + 12e6),
        (8192, 4, 1049, 0),
        (8192, 8, 1209, HEAD_SCALES + 1.2 * WINDOW),
        (8192, 16, 1209, HEAD_SCALES + 1.8 * WINDOW),
        (40_960, 8, 1209, HEAD_SCALES + WINDOW),
        (40_960, 16, 1209, HEAD_SCALES + WINDOW),
        (131_072, 1, 1049, HEAD_SCALES + WINDOW),
        (131_072, 4, 1049, 0),
        (131_072, 8, 1209, 0),
        (131_072, 16, 1209, 0),  # all heads at once, as the softmax is in place
    ],
)
def test_verified_draft_tokens_over_a_packed_cache_take_fewer_dispatches_than_mlx_lms(
    context: int, rows: int, dispatches: int, beyond: float
) -> None:
    ours, theirs = (census(who, "8/8", context, rows) for who in ("ours", "mlx-lm"))
    assert ours.dispatches <= dispatches and ours.dispatches < theirs.dispatches
    assert ours.moved < theirs.moved + beyond


@pytest.mark.parametrize(
    ("cache", "dispatches", "copied"), [("full", 555, 0), ("8/8", 2524, 7.3e9)]
)
def test_a_chunk_of_the_prompt_stays_as_it_is(cache: str, dispatches: int, copied: float) -> None:
    ours, theirs = (census(who, cache, CONTEXT, CHUNK, chunk=True) for who in ("ours", "mlx-lm"))
    assert ours.dispatches <= dispatches and ours.copied <= copied
    assert ours.moved < theirs.moved
    assert ours.flops < 1.01 * theirs.flops


@pytest.mark.parametrize(("rows", "beyond"), [(4, 1.1 * HEAD_SCALES), (8, 0), (16, 0)])
def test_verified_draft_tokens_take_no_more_than_mlx_lms(rows: int, beyond: float) -> None:
    ours, theirs = (census(who, "full", CONTEXT, rows) for who in ("ours", "mlx-lm"))
    assert ours.dispatches < theirs.dispatches
    assert ours.moved < theirs.moved + beyond
    assert ours.copied <= theirs.copied


def test_a_copy_of_the_cache_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    before = census("ours", "full", CONTEXT, 1)
    read = Buffer.read
    monkeypatch.setattr(Buffer, "read", lambda *given: mx.contiguous(read(*given)))
    after = census("ours", "full", CONTEXT, 1)
    cache = 2 * 40 * 8 * 128 * CONTEXT * 2
    assert after.dispatches == before.dispatches + 80
    assert after.copied == pytest.approx(2 * cache, rel=0.01)  # read and written


def test_products_of_stacked_matrices_are_counted_if_they_come_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from magistral_mlx.model.linear import Projections

    before = census("ours", "full", 128, 1)
    apart = Projections.apart

    def slower(self: Projections, x: mx.array) -> list[mx.array]:
        return [part + 0 for part in apart(self, x)]

    monkeypatch.setattr(Projections, "apart", slower)
    assert census("ours", "full", 128, 1).dispatches == before.dispatches + 80


# Strides, against NumPy's


@pytest.mark.parametrize("seed", range(40))
def test_a_reshape_is_a_view_where_numpys_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.choice([1, 2, 3, 4, 6], size=rng.integers(1, 5)))
    x = np.zeros(shape)
    for _ in range(2):
        x = x.transpose(rng.permutation(x.ndim))
        cut = tuple(slice(0, max(1, n - int(rng.integers(0, 2)))) for n in x.shape)
        x = x[cut]
    factors = rng.permutation(_factors(x.size))
    parts = np.split(factors, np.sort(rng.integers(0, len(factors) + 1, 3)))
    wanted = tuple(int(np.prod(part)) for part in parts)
    strides = tuple(s // x.itemsize for s in x.strides)
    view = Array(x.shape, strides, x.itemsize).reshaped(wanted)
    expected = x.reshape(wanted)
    if not np.shares_memory(expected, x):
        assert view is None
        return
    assert view is not None and view.shape == wanted
    axes = [n for n, size in enumerate(wanted) if size > 1]
    assert [view.strides[n] for n in axes] == [expected.strides[n] // 8 for n in axes]


def _factors(number: int) -> list[int]:
    """The prime factors, all of 2, 3 and 5."""
    found = []
    for factor in (2, 3, 5):
        while number % factor == 0:
            found.append(factor)
            number //= factor
    assert number == 1
    return found
