"""The relative error of a kernel's result against float32 on the CPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import backend, mx

Floats = NDArray[np.float32]

# Largest relative error, root mean square: inputs are exact, sums are in float32, and the result is
# rounded. Kernels for many rows also round each dequantized weight. float32: MLX's kernels for
# matrix units may round inputs to TF32 (11 bits).
_TOLERANCE = {mx.float32: 2e-3, mx.float16: 4e-3, mx.bfloat16: 1.6e-2}
_TOLERANCE_ON_CPU = 1e-4


@dataclass(frozen=True)
class Deviation:
    """The relative error of a kernel's result."""

    kernel: str
    error: float


def tolerance_of(dtype: mx.Dtype) -> float:
    """Largest relative error of a kernel that computes in `dtype`."""
    if backend().name != "cpu":
        return _TOLERANCE[dtype]
    # The CPU's quantized kernel adds up in the dtype itself.
    return _TOLERANCE_ON_CPU if dtype == mx.float32 else 3 * _TOLERANCE[dtype]


def plain(x: mx.array) -> Floats:
    """A float32 copy for NumPy."""
    return np.array(x.astype(mx.float32))


def error_of(y: Floats, expected: Floats) -> float:
    """Relative error, root mean square; or of the worst value, if that is ten times as bad."""
    scale = float(np.sqrt(np.mean(expected**2))) or 1.0
    if not np.isfinite(y).all():
        return math.inf
    difference = np.abs(y - expected)
    mean = float(np.sqrt(np.mean(difference**2)))
    return max(mean, float(difference.max()) / 10) / scale


def normal(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    """Random normal values."""
    return mx.random.normal(shape).astype(dtype)
