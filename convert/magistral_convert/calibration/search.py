"""Search of affine scales for the least weighted squared error of each group.

A group of weights w becomes s * q + b with whole codes q from 0 to n. For codes that are given, the
best s and b are a weighted least-squares fit; for a given s and b the best codes are the nearest.
The search begins with several ranges of a group's values, from a little more than all of them to a
part at the lower end, in the middle or at the upper end, which clips outliers; moves the ends of
the best by smaller and smaller steps; fits s and b to its codes, and again to the nearest codes of
that; and rounds both to bfloat16. The idea is that of llama.cpp's quantizers, the weights are the
mean squares of the input columns: the expected squared error of an output is their sum, weighted by
these. A few heavy columns decide where a grid should lie, so starts that differ matter.

Shapes: R rows, G groups of a row, g weights of a group.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.quantization import Quantization

# Widest and narrowest range that is tried, as shares of a group's, by bits; with more bits clipping
# costs more than finer steps gain.
_SHARES = {
    2: (1.05, 0.35),
    3: (1.05, 0.45),
    4: (1.05, 0.60),
    5: (1.0, 0.75),
    6: (1.0, 0.85),
    8: (1.0, 0.95),
}
_WIDTHS = 5  # of ranges
_ENDS = (0.0, 0.5, 1.0)  # how much of what a range leaves out is below it
_COARSE = 4  # bits up to which that matters
_FLOOR = 1e-4  # least weight of a column, as a share of its group's mean

Floats = NDArray[np.float32]
Packed = tuple[mx.array, mx.array, mx.array]  # weight, scales, biases


def search(rows: Floats, importance: Floats, scheme: Quantization) -> Packed:
    """Quantize rows with searched scales.

    Args:
        rows: (R, columns) float32.
        importance: (columns,) float32, not negative: what a squared error in each column counts.
        scheme: an affine one.

    Returns:
        weight (R, columns * bits / 32) uint32, scales and biases (R, G) bfloat16, as
        `mx.quantize` gives them.
    """
    scales, biases, codes = fit(rows, importance, scheme)
    return pack(codes, scheme.bits), bfloat16(scales), bfloat16(biases)


def fit(
    rows: Floats, importance: Floats, scheme: Quantization
) -> tuple[Floats, Floats, NDArray[np.uint8]]:
    """Search the scales and biases of rows; see `search`.

    Returns:
        scales and biases, (R, G), values of bfloat16, and codes, (R, columns).
    """
    from magistral_convert.calibration.loops import fit_groups

    count, columns = rows.shape
    scales, biases = np.empty((2, count, columns // scheme.group_size), np.float32)
    codes = np.empty((count, columns), np.uint8)
    starts, step = _starts(scheme.bits)
    fit_groups(
        np.ascontiguousarray(rows),
        group_importance(importance, scheme),
        np.float32(2**scheme.bits - 1),
        starts,
        step,
        scales,
        biases,
        codes,
    )
    return scales, biases, codes


@lru_cache
def _starts(bits: int) -> tuple[Floats, np.float32]:
    """Return the ranges that are tried, (S, 2), of values from -1/2 to 1/2, and half of the
    difference of two widths."""
    widths = np.linspace(*_SHARES[bits], _WIDTHS)
    ends = [
        (lowest, lowest + width)
        for width in widths
        for part in (_ENDS if bits <= _COARSE and width < 1 else (0.5,))
        for lowest in [(1 - width) * part - 0.5]
    ]
    return np.array(ends, np.float32), np.float32((widths[0] - widths[1]) / 2)


def group_importance(importance: Floats, scheme: Quantization) -> Floats:
    """(columns,) -> (G, g) of mean 1 in each group; a group that is never used has ones."""
    groups = np.asarray(importance, np.float32).reshape(-1, scheme.group_size)
    mean = groups.mean(axis=-1, keepdims=True)
    shares = np.maximum(groups / np.maximum(mean, 1e-30), _FLOOR)
    return np.where(mean > 0, shares, 1).astype(np.float32)


def bfloat16(values: Floats) -> mx.array:
    """Return values as an array of bfloat16."""
    return mx.array(values).astype(mx.bfloat16)


def pack(codes: NDArray[np.uint8], bits: int) -> mx.array:
    """Pack codes (R, columns) into uint32 words, the first in the lowest bits, as MLX does."""
    count = len(codes)
    run = 8 // math.gcd(bits, 8)  # codes that fill whole bytes
    runs = codes.reshape(-1, run)
    words = np.zeros(len(runs), "<u8" if bits in (3, 5, 6) else np.uint8)
    for place in range(run):
        words |= np.left_shift(runs[:, place], place * bits, dtype=words.dtype)
    octets = words.view(np.uint8).reshape(len(words), -1)[:, : run * bits // 8]
    packed = np.ascontiguousarray(octets).reshape(count, -1).view("<u4")
    return mx.array(packed)
