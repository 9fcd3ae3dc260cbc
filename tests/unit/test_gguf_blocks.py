"""ggml's blocks against the `gguf` package: decoded exactly, laid out so or within the bound."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.gguf.blocks import IQ4_LEVELS, decode, dequantize, in_blocks
from magistral_mlx.checkpoint.gguf.layout import (
    BOUND,
    EXACT,
    FITTED,
    form_of,
    lay_out,
    pack_codes,
)
from tests.gguf_files import BLOCK_TYPES, random_blocks

Floats = NDArray[np.float32]


def reference(kind: str, raw: NDArray[np.uint8]) -> Floats:
    return np.asarray(gguf.quants.dequantize(raw, Type[kind]))


def laid_out(kind: str, raw: NDArray[np.uint8], dtype: mx.Dtype = mx.float32) -> Floats:
    """What MLX reads from rows that were laid out, scales and offsets rounded to `dtype`."""
    found, scheme = lay_out(kind, raw), form_of(kind)
    scales, biases = (
        mx.array(part).astype(dtype).astype(mx.float32) for part in (found.scales, found.biases)
    )
    values = mx.dequantize(
        mx.array(found.weight), scales, biases, group_size=scheme.group_size, bits=scheme.bits
    )
    return np.array(values)


def rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=float))))


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (3, 512), (64, 1280)])
def test_every_type_decodes_to_what_gguf_says(kind: str, rows: int, columns: int):
    raw = random_blocks(kind, rows, columns, seed=rows)
    np.testing.assert_array_equal(dequantize(kind, raw), reference(kind, raw))


@pytest.mark.parametrize("kind", EXACT)
def test_exact_types_have_the_same_weights_in_mlx(kind: str):
    raw = random_blocks(kind, 64, 1024)
    np.testing.assert_array_equal(laid_out(kind, raw), reference(kind, raw))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_scales_that_are_float16_in_the_file_lose_nothing_in_float16(kind: str):
    raw = random_blocks(kind, 64, 1024)
    np.testing.assert_array_equal(laid_out(kind, raw, mx.float16), reference(kind, raw))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K"])
def test_float16_scales_of_k_types_lose_less_than_a_thousandth(kind: str):
    raw = random_blocks(kind, 64, 1024)
    wanted = reference(kind, raw)
    assert rms(laid_out(kind, raw, mx.float16) - wanted) < 1e-3 * rms(wanted)


def own_error(kind: str, raw: NDArray[np.uint8]) -> float:
    """The root mean square of the rounding error that a type has made: of each weight its level's
    distance to its neighbours, evenly distributed."""
    decoded = decode(kind, in_blocks(kind, raw))
    if decoded.levels is None:
        return rms(decoded.scale) / np.sqrt(12)
    levels = np.array(IQ4_LEVELS, float)
    middles = (levels[1:] + levels[:-1]) / 2
    first, last = 2 * (middles[0] - levels[0]), 2 * (levels[-1] - middles[-1])
    widths = np.array([first, *np.diff(middles), last])
    blocks, groups = decoded.scale.shape
    codes = decoded.codes.reshape(blocks, groups, -1)
    return rms(widths[codes] * decoded.scale[..., None]) / np.sqrt(12)


@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_the_other_types_stay_within_the_bound(kind: str, dtype: mx.Dtype):
    raw = like_a_model(kind)
    error = rms(laid_out(kind, raw, dtype) - reference(kind, raw))
    assert error < BOUND * own_error(kind, raw)


def like_a_model(kind: str) -> NDArray[np.uint8]:
    """Blocks whose scales differ as much as those of a model: within a factor of two or so."""
    raw = random_blocks(kind, 64, 1024, seed=7)
    blocks, rng = raw.reshape(-1, gguf.GGML_QUANT_SIZES[Type[kind]][1]), np.random.default_rng(8)
    count = len(blocks)
    if kind == "Q6_K":
        blocks[:, 192:208] = rng.integers(50, 120, (count, 16), dtype=np.uint8)
    elif kind == "Q2_K":
        blocks[:, :16] = rng.integers(6, 16, (count, 16)) | rng.integers(6, 16, (count, 16)) << 4
    elif kind == "Q3_K":  # 32 + 12 … 32 + 31: high bits 2, and 3 in every other scale
        blocks[:, 96:104] = rng.integers(0, 256, (count, 8)) | 0xCC
        blocks[:, 104:108] = 0xAA
    return raw


def test_a_type_with_even_levels_is_not_in_the_fitted_ones():
    assert set(EXACT) | set(FITTED) == set(BLOCK_TYPES)
    assert not set(EXACT) & set(FITTED)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (1, 512), (3, 256), (2, 768)])
def test_what_was_read_stays_as_it_is(kind: str, rows: int, columns: int):
    raw = random_blocks(kind, rows, columns)
    before = raw.copy()
    lay_out(kind, raw)
    dequantize(kind, raw)
    np.testing.assert_array_equal(raw, before)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (3, 512), (64, 1280), (7, 768)])
def test_nibbles_are_packed_as_their_codes_are(kind: str, rows: int, columns: int):
    raw = random_blocks(kind, rows, columns, seed=rows)
    codes = decode(kind, in_blocks(kind, raw)).codes
    packed = pack_codes(codes, 4).reshape(rows, -1).view("<u4")
    np.testing.assert_array_equal(lay_out(kind, raw).weight, packed)


def test_blocks_of_zeros_stay_zeros():
    for kind in BLOCK_TYPES:
        raw = np.zeros_like(random_blocks(kind, 2, 512))
        assert not laid_out(kind, raw).any(), kind


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_packed_as_mlx_unpacks_them(bits: int):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (6, 128), dtype=np.uint8)
    packed = pack_codes(codes, bits).view("<u4")
    ones, zeros = mx.ones((6, 4)), mx.zeros((6, 4))
    found = mx.dequantize(mx.array(packed), ones, zeros, group_size=32, bits=bits)
    np.testing.assert_array_equal(np.array(found), codes)


def test_infinities_and_scales_beyond_float16_are_noticed():
    raw = random_blocks("Q4_0", 4, 256)
    assert lay_out("Q4_0", raw).is_finite
    for scale in (np.inf, -np.inf, np.nan, 60_000.0):  # 60,000 times 8 is no float16
        broken = raw.copy()
        broken[2, :2] = np.array([scale], np.float16).view(np.uint8)
        assert not lay_out("Q4_0", broken).is_finite, scale
