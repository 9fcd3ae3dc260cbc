"""Attention as it runs on Metal: the same values, through kernels that use the whole GPU."""

from __future__ import annotations

import numpy as np
import pytest

from magistral_mlx.backend import mx
from magistral_mlx.cache import attention
from magistral_mlx.cache.attention import attend
from magistral_mlx.cache.segments import Packed, Segment
from tests.metal import recorded_kernels, use_metal

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128  # of Magistral Small
SCALE = HEAD_DIM**-0.5


def random(shape: tuple[int, ...], seed: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def packed(x: mx.array, bits: int) -> Packed:
    return Packed(*mx.quantize(x, group_size=64, bits=bits), bits=bits, group_size=64)


def cache_of(keys: int, window: int, bits: tuple[int, int]) -> list[Segment]:
    """First tokens, packed tokens and a window, in spare capacity as a cache has them."""
    k, v = (random((1, KV_HEADS, keys + 64, HEAD_DIM), seed) for seed in (1, 2))
    plain = [random((1, KV_HEADS, 4 + window, HEAD_DIM), seed) for seed in (3, 4)]
    return [
        Segment(plain[0][:, :, :4], plain[1][:, :, :4], 4),
        Segment(packed(k, bits[0]).tokens(0, keys), packed(v, bits[1]).tokens(0, keys), keys),
        Segment(plain[0][:, :, 4:], plain[1][:, :, 4:], window),
    ]


@pytest.mark.parametrize("bits", [(8, 8), (8, 4), (4, 4)], ids=str)
@pytest.mark.parametrize("keys", [1024, 2112, 5184], ids=str)
@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_attention_over_packed_values_is_that_of_the_cpu(
    length: int, keys: int, bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = cache_of(keys, 128, bits)
    q = random((1, HEADS, length, HEAD_DIM), 5)
    expected = np.array(attend(q, segments, scale=SCALE))
    use_metal(monkeypatch)
    np.testing.assert_allclose(np.array(attend(q, segments, scale=SCALE)), expected, atol=2e-6)


@pytest.mark.parametrize("keys", [1024, 4160, 12288], ids=str)
def test_a_decoded_token_splits_the_keys_over_threadgroups(
    keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qmm_n` would walk through all of them in 32 threadgroups."""
    use_metal(monkeypatch)
    with recorded_kernels() as kernels:
        attend(random((1, HEADS, 1, HEAD_DIM), 5), cache_of(keys, 128, (8, 8)), scale=SCALE)
    scores, values = kernels
    assert scores.name == "qmv"
    assert values.name == "qvm_split_k" and values.keys <= 1280 and values.threadgroups >= 512


@pytest.mark.parametrize("length", [2, 3, 8])
@pytest.mark.parametrize("keys", [4160, 12288], ids=str)
def test_verified_draft_tokens_split_the_keys_over_threadgroups(
    length: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_metal(monkeypatch)
    with recorded_kernels() as kernels:
        attend(random((1, HEADS, length, HEAD_DIM), 5), cache_of(keys, 128, (8, 8)), scale=SCALE)
    values = [kernel for kernel in kernels if kernel.name in ("qmm_n", "qvm", "qvm_split_k")]
    assert max(kernel.keys for kernel in values) <= attention.SPLIT_KEYS
    assert max(kernel.threadgroups for kernel in values) >= 128


def test_the_parts_of_packed_values_are_views_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A matrix whose last two axes are contiguous is not copied (quantized.cpp, line 65)."""
    use_metal(monkeypatch)
    segments = cache_of(8192, 128, (4, 4))
    q = random((1, HEADS, 8, HEAD_DIM), 5)
    mx.eval(q, [part for x in segments[1][:2] if isinstance(x, Packed) for part in x.parts])
    mx.eval([x for segment in (segments[0], segments[2]) for x in segment[:2]])
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(attend(q, segments, scale=SCALE))
    scores = HEADS * 8 * 8324 * 4
    assert mx.get_peak_memory() - held < 5 * scores
