"""Scales chosen within the grids of mxfp4, nvfp4 and mxfp8."""

from __future__ import annotations

import numpy as np
import pytest

from magistral_convert.calibration.floating import search_floating
from magistral_mlx.backend import mx
from magistral_mlx.quantization import FIXED_MODES, Quantization

ROWS, COLUMNS = 32, 256
MODES = list(FIXED_MODES)


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
