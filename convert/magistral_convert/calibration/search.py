"""Search of affine scales for the least weighted squared error of each group.

A group of weights w becomes s * q + b with whole codes q from 0 to n. For codes that are given, the
best s and b are a weighted least-squares fit; for a given s and b the best codes are the nearest.
The search begins with several widths of the range of a group, from all of it to a part, which clips
its outliers; fits s and b to the codes of each; takes the best; and alternates a few times from
there. The idea is that of llama.cpp's quantizers, the weights are the mean squares of the input
columns: the expected squared error of an output is their sum, weighted by these.

Shapes: R rows, G groups of a row, g weights of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from magistral_mlx.backend import mx
from magistral_mlx.quantization import Quantization

# Narrowest range that is tried, as a share of a group's, by bits; with more bits clipping costs
# more than finer steps gain.
_NARROWEST = {2: 0.40, 3: 0.50, 4: 0.62, 5: 0.75, 6: 0.85, 8: 0.95}
_WIDTHS = 7  # ranges that are tried
_REFITS = 2
_TINY = 1e-12
_FLOOR = 1e-4  # least weight of a column, as a share of its group's mean

Packed = tuple[mx.array, mx.array, mx.array]  # weight, scales, biases
Best = tuple[mx.array, mx.array, mx.array]  # error, scale and bias of each group, (R, G)


def search(weights: mx.array, importance: mx.array, scheme: Quantization) -> Packed:
    """Quantize rows with searched scales.

    Args:
        weights: (R, columns).
        importance: (columns,) float32, not negative: what a squared error in each column counts.
        scheme: an affine one.

    Returns:
        weight (R, columns * bits / 32) uint32, scales and biases (R, G) bfloat16, as
        `mx.quantize` gives them.
    """
    rows, columns = weights.shape
    groups = weights.astype(mx.float32).reshape(rows, -1, scheme.group_size)
    scales, biases = fit(groups, group_importance(importance, scheme), scheme.bits)
    codes = nearest(groups, scales.astype(mx.float32), biases.astype(mx.float32), scheme.bits)
    return pack(codes.reshape(rows, columns), scheme.bits), scales, biases


def group_importance(importance: mx.array, scheme: Quantization) -> mx.array:
    """(columns,) -> (G, g) of mean 1 in each group; a group that is never used has ones."""
    groups = importance.astype(mx.float32).reshape(-1, scheme.group_size)
    mean = groups.mean(axis=-1, keepdims=True)
    return mx.where(mean > 0, mx.maximum(groups / mx.maximum(mean, 1e-30), _FLOOR), 1.0)


def fit(groups: mx.array, importance: mx.array, bits: int) -> tuple[mx.array, mx.array]:
    """Search the scales and biases of groups.

    Args:
        groups: (R, G, g) float32. importance: (G, g).

    Returns:
        scales and biases, (R, G) bfloat16.
    """
    step = _compiled(bits)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    most = 2**bits - 1
    total = importance.sum(axis=-1)
    weighted = groups * importance
    first = weighted.sum(axis=-1)
    best = (mx.full(first.shape, np.inf), mx.zeros_like(first), mx.zeros_like(first))
    middle = (high + low) / 2
    for share in np.linspace(1.0, _NARROWEST[bits], _WIDTHS):
        scale = mx.maximum((high - low) * (float(share) / most), _TINY)
        best = step(
            groups, weighted, importance, total, first, scale, middle - scale * (most / 2), *best
        )
    for _ in range(_REFITS):
        _, scale, bias = best
        scale, bias = mx.maximum(scale, _TINY)[..., None], bias[..., None]
        best = step(groups, weighted, importance, total, first, scale, bias, *best)
    _, scale, bias = best
    # A bias is rounded to 8 bits, which with many codes is much of a step: the scale follows it.
    rounded = bias.astype(mx.bfloat16)
    codes = nearest(groups, scale, rounded.astype(mx.float32), bits)
    squares = (codes * codes * importance).sum(axis=-1)
    target = (codes * (groups - rounded.astype(mx.float32)[..., None]) * importance).sum(axis=-1)
    refit = mx.where(squares > 0, target / mx.maximum(squares, _TINY), scale)
    return mx.maximum(refit, 0).astype(mx.bfloat16), rounded


def nearest(groups: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """Return the nearest codes, (R, G, g) float32. scales, biases: (R, G) float32."""
    inverse = mx.where(scales > 0, 1 / mx.maximum(scales, _TINY), 0)[..., None]
    return mx.clip(mx.round((groups - biases[..., None]) * inverse), 0, 2**bits - 1)


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes (R, columns) into uint32 words, the first in the lowest bits, as MLX does."""
    rows = codes.shape[0]
    runs = codes.astype(mx.uint32).reshape(rows, -1, 32)  # 32 codes fill `bits` words
    words = []
    for word in range(bits):
        value = mx.zeros(runs.shape[:2], mx.uint32)
        for place in range(32):
            shift = place * bits - 32 * word
            if -bits < shift < 0:
                value = value | mx.right_shift(runs[..., place], -shift)
            elif 0 <= shift < 32:
                value = value | mx.left_shift(runs[..., place], shift)
        words.append(value)
    return mx.stack(words, axis=-1).reshape(rows, -1)


@lru_cache
def _compiled(bits: int) -> Callable[..., Best]:
    most = 2**bits - 1

    def step(
        groups: mx.array,
        weighted: mx.array,
        importance: mx.array,
        total: mx.array,
        first: mx.array,
        scale: mx.array,
        bias: mx.array,
        error: mx.array,
        scales: mx.array,
        biases: mx.array,
    ) -> Best:
        """Fit s and b to the codes of a scale and bias (R, G, 1); keep what is better.

        The error is without the sum of all squares, which is the same for all.
        """
        codes = mx.clip(mx.round((groups - bias) / scale), 0, most)
        counted = codes * importance
        ones = counted.sum(axis=-1)
        squares = (counted * codes).sum(axis=-1)
        target = (codes * weighted).sum(axis=-1)
        spread = squares * total - ones * ones
        fits = spread > 1e-6 * squares * total
        s = mx.where(
            fits, (target * total - ones * first) / mx.where(fits, spread, 1), scale[..., 0]
        )
        b = mx.where(fits, (first - s * ones) / total, bias[..., 0])
        found = s * s * squares + 2 * s * b * ones + b * b * total - 2 * s * target - 2 * b * first
        better = (found < error) & (s > 0)
        return (
            mx.where(better, found, error),
            mx.where(better, s, scales),
            mx.where(better, b, biases),
        )

    compiled: Callable[..., Best] = mx.compile(step)
    return compiled
