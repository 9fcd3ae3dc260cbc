"""Scales chosen within the grids of mxfp4, nvfp4 and mxfp8, and the bytes of all methods."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from magistral_convert.calibration.floating import E2M1, E4M3, MODES, search_floating
from magistral_convert.calibration.gptq import compensate, factorize
from magistral_convert.calibration.search import search
from magistral_mlx.backend import mx
from magistral_mlx.quantization import FIXED_MODES, Quantization

ROWS, COLUMNS = 32, 256


def scheme_of(mode: str) -> Quantization:
    return Quantization(*FIXED_MODES[mode], mode)


def weights_of(scale: float) -> mx.array:
    values = np.random.default_rng(3).standard_t(4, (ROWS, COLUMNS)) * scale
    return mx.array(values.astype(np.float32)).astype(mx.bfloat16)


def searched(weights: mx.array, importance: mx.array, scheme: Quantization):
    return search_floating(np.array(weights.astype(mx.float32)), np.array(importance), scheme)


def values_of(parts, scheme: Quantization) -> mx.array:
    found = mx.dequantize(*parts, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode)
    return found.astype(mx.float32)


def errors(parts, weights: mx.array, importance: mx.array, scheme: Quantization) -> np.ndarray:
    """Weighted squared error of each group."""
    squares = mx.square(values_of(parts, scheme) - weights.astype(mx.float32)) * importance
    return np.array(squares.reshape(ROWS, -1, scheme.group_size).sum(axis=-1))


@pytest.fixture(scope="module")
def importance() -> mx.array:
    values = np.exp(2 * np.random.default_rng(4).standard_normal(COLUMNS))
    return mx.array(values.astype(np.float32))


@pytest.mark.parametrize(("mode", "share"), [("mxfp4", 0.85), ("nvfp4", 0.8), ("mxfp8", 1.0)])
@pytest.mark.parametrize("scale", [0.02, 3.0])
def test_the_weighted_error_falls_and_no_groups_error_grows(
    mode: str, share: float, scale: float, importance: mx.array
):
    scheme, weights = scheme_of(mode), weights_of(scale)
    plain = mx.quantize(weights, group_size=scheme.group_size, bits=scheme.bits, mode=mode)
    found = searched(weights, importance, scheme)
    assert [(p.shape, p.dtype) for p in found] == [(p.shape, p.dtype) for p in plain]
    usual = errors(plain, weights, importance, scheme)
    least = errors(found, weights, importance, scheme)
    assert (least <= usual * 1.0001).all()
    assert least.sum() <= share * usual.sum()


@pytest.mark.parametrize("mode", MODES)
def test_zeros_tiny_and_huge_groups_come_back(mode: str):
    scheme = scheme_of(mode)
    rows = mx.stack([mx.full((COLUMNS,), v) for v in (0.0, 2.0**-6, -1.5, 1024.0)])
    rows = rows.astype(mx.bfloat16)
    found = values_of(searched(rows, mx.ones(COLUMNS), scheme), scheme)
    assert np.allclose(np.array(found), np.array(rows.astype(mx.float32)), rtol=0.04)


@pytest.mark.parametrize("mode", MODES)
def test_what_the_format_holds_exactly_is_kept_exactly(mode: str):
    """Every value of four bits, at several powers of two, each with its sign."""
    scheme = scheme_of(mode)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    signed = np.tile(np.concatenate([grid, -grid]), 16)
    rows = mx.array(np.stack([signed * 2.0**power for power in (-5, 0, 4)]).astype(np.float32))
    found = values_of(searched(rows, mx.ones(256), scheme), scheme)
    assert mx.array_equal(found, rows)


@pytest.mark.parametrize("mode", MODES)
def test_columns_without_inputs_change_nothing_for_the_others(mode: str, importance: mx.array):
    scheme, weights = scheme_of(mode), weights_of(1.0)
    silent = mx.concatenate([mx.zeros(40), importance[40:]])
    plain = mx.quantize(weights, group_size=scheme.group_size, bits=scheme.bits, mode=mode)
    found = searched(weights, silent, scheme)
    assert (
        errors(found, weights, silent, scheme).sum()
        <= errors(plain, weights, silent, scheme).sum() * 1.0001
    )
    assert bool(mx.isfinite(values_of(found, scheme)).all().item())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("scale", [1e-4, 0.02, 30.0])
def test_the_scale_is_the_best_of_those_that_are_tried(
    mode: str, scale: float, importance: mx.array
):
    """Each against every element of the format, in float64."""
    scheme, weights = scheme_of(mode), weights_of(scale)
    groups = np.array(weights.astype(mx.float32), np.float64).reshape(ROWS, -1, scheme.group_size)
    shares = np.array(importance, np.float64).reshape(-1, scheme.group_size)
    positive = (E4M3 if mode == "mxfp8" else E2M1).values()
    elements = np.concatenate([-positive[::-1], positive])
    middles = (elements[1:] + elements[:-1]) / 2
    plain = mx.quantize(weights, group_size=scheme.group_size, bits=scheme.bits, mode=mode)
    least = np.full(groups.shape[:2], np.inf)
    for distance in (0, *MODES[mode].tries):
        codes = np.clip(np.array(plain[1]).astype(int) + distance, 1, len(MODES[mode].scales) - 1)
        s = MODES[mode].scales[codes].astype(np.float64)[..., None]
        values = elements[np.searchsorted(middles, groups / s)] * s
        least = np.minimum(least, (np.square(values - groups) * shares).sum(axis=-1))
    found = errors(searched(weights, importance, scheme), weights, importance, scheme)
    assert np.allclose(found, least, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_rows_that_fill_no_tile_are_searched_like_the_others(mode: str):
    scheme, columns = scheme_of(mode), 32 * 600
    rows = np.random.default_rng(6).standard_normal((19, columns)).astype(np.float32)
    importance = np.random.default_rng(7).random(columns).astype(np.float32)
    whole = search_floating(rows, importance, scheme)
    for first, last in ((0, 1), (18, 19), (5, 12)):
        part = search_floating(rows[first:last], importance, scheme)
        assert all(mx.array_equal(a[first:last], b) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_the_first_scale_is_that_of_mlx_for_every_largest_weight(mode: str):
    scheme = scheme_of(mode)
    values = (np.arange(0x0800, 0x7F80, dtype=np.uint32) << 16).view(np.float32)
    values = np.append(values, np.float32(0))
    rows = mx.repeat(mx.array(values)[:, None], 32, axis=1).astype(mx.bfloat16)
    _, scales = mx.quantize(rows, group_size=scheme.group_size, bits=scheme.bits, mode=mode)
    own = MODES[mode].own(values / MODES[mode].elements.most)
    assert np.array_equal(own, np.array(scales)[:, 0])


def test_elements_of_eight_bits_are_those_of_mlx():
    """All of them, the halves between two, and random ones of all sizes."""
    values = E4M3.values()
    of_mlx = mx.from_fp8(mx.arange(127).astype(mx.uint8), mx.float32)
    assert np.array_equal(values, np.array(of_mlx))
    rng = np.random.default_rng(8)
    random = np.exp2(rng.uniform(-14, 10, 20_000)) * rng.random(20_000)
    x = np.concatenate([values, (values[1:] + values[:-1]) / 2, random]).astype(np.float32)
    right = np.array(mx.to_fp8(mx.array(np.minimum(x, 448))))
    assert np.array_equal(E4M3.encode(x.copy(), np.empty_like(x)), right)
    rounded = x.copy()
    E4M3.round(rounded, np.empty_like(x))
    assert np.array_equal(rounded, values[right])


def test_elements_of_four_bits_are_those_of_mlx():
    words = mx.array([[0x76543210, 0, 0, 0]], dtype=mx.uint32)
    one = mx.array([[127]], dtype=mx.uint8)
    right = mx.dequantize(words, one, group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    assert np.array_equal(E2M1.values(), np.array(right)[0, :8])
    x = np.array([0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.1, 100.0], np.float32)
    assert E2M1.encode(x, np.empty_like(x)).tolist() == [0, 1, 2, 2, 4, 4, 6, 6, 7, 7]


def test_bytes_are_those_that_the_formats_are_numbered_for():
    """The sums of this matrix are exact in float32, so they are the same on every CPU."""
    count, columns = 8, 128
    places = np.arange(count * columns).reshape(count, columns)
    rows = (((places * places * 37 + places * 11) % 61 - 30) / 32).astype(np.float32)
    rows[:, ::64], rows[:, 1::64] = -1, 1
    importance = np.array([1, 2, 4, 9] * (columns // 4), np.float32)
    root, numbers = np.sqrt(importance), np.arange(columns)
    together = 0.5 ** np.abs(np.subtract.outer(numbers, numbers))
    factors = [factorize((together * np.outer(root, root)).astype(np.float32))]
    digest = hashlib.sha256()
    for parts in (
        search(rows, importance, Quantization(4, 64)),
        search(rows, importance, Quantization(6, 64)),
        compensate(rows, importance, factors, Quantization(4, 64)),
        search_floating(rows, importance, Quantization(4, 16, "nvfp4")),
    ):
        for part in parts:
            plain = part.view(mx.uint16) if part.dtype == mx.bfloat16 else part
            digest.update(np.array(plain).tobytes())
    assert digest.hexdigest()[:16] == "1ee41ca93709faad", (
        "the same options give other bytes: raise _FORMAT in conversion.py and in "
        "calibration/measured.py, so that nothing begun before is continued, and note the digest"
    )
