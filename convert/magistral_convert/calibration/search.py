"""Search of affine scales for the least weighted squared error of each group.

A group of weights w becomes s * q + b with whole codes q from 0 to n. For codes that are given, the
best s and b are a weighted least-squares fit; for a given s and b the best codes are the nearest.
The search begins with several ranges of a group's values, from all of them to a part at the lower
end, in the middle or at the upper end, which clips outliers; fits s and b to the codes of each;
takes the best; and fits again to the nearest codes of that. The idea is that of llama.cpp's
quantizers, the weights are the mean squares of the input columns: the expected squared error of an
output is their sum, weighted by these. A few heavy columns decide where a grid should lie, so
starts that differ matter more than many steps from each.

It is written in NumPy for tiles that stay in a core's cache, and runs in several threads: MLX's CPU
kernels take an order of magnitude longer, and a GPU has the layers to run meanwhile.

Shapes: R rows, G groups of a row, g weights of a group. A tile has the groups first, (G, g, R), so
that what is done for each group runs along the rows.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from magistral_convert.quantize import bfloat16_values
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
_REFITS = 3
_COARSE = 4  # bits up to which a scale that is rounded changes no codes that matter
_TINY = np.float32(1e-12)
_FLOOR = 1e-4  # least weight of a column, as a share of its group's mean
_TILE = 1 << 17  # weights that are searched together
_PRODUCT = 1 << 13  # elements of a product of BLAS that it does in one thread

Floats = NDArray[np.float32]
Fit = tuple[Floats, Floats]  # scales, biases
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
    count, columns = rows.shape
    size = scheme.group_size
    weight = group_importance(importance, scheme)[:, None]  # (G, 1, g)
    scales, biases = np.empty((2, count, columns // size), np.float32)
    codes = np.empty((count, columns), np.uint8)
    step = max(1, _PRODUCT // size)
    tiles = math.ceil(columns * step / _TILE)
    wide = math.ceil(columns // size / tiles)
    for start in range(0, count, step):
        here = slice(start, min(start + step, count))
        for first in range(0, columns // size, wide):
            groups = slice(first, min(first + wide, columns // size))
            across = slice(groups.start * size, groups.stop * size)
            tile = np.ascontiguousarray(rows[here, across].T)
            x = tile.reshape(-1, size, here.stop - here.start)
            scale, bias, found = _fit_tile(x, weight[groups], scheme.bits)
            scales[here, groups], biases[here, groups] = scale.T, bias.T
            codes[here, across] = found.astype(np.uint8).reshape(tile.shape).T
    return scales, biases, codes


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


def _fit_tile(x: Floats, importance: Floats, bits: int) -> tuple[Floats, Floats, Floats]:
    """Search the scales and biases of a tile.

    Args:
        x: (G, g, R). importance: (G, 1, g).

    Returns:
        scales and biases, (G, R), values of bfloat16, and codes, (G, g, R).
    """
    most = np.float32(2**bits - 1)
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    middle, width = (low + high) / 2, np.maximum(high - low, _TINY)
    even = x - middle  # from -1/2 to 1/2, so that a width that is tried is the same for all groups
    even *= 1 / width
    sums = _Sums(even, importance)
    starts = _starts(bits)
    tried = np.empty((3, len(starts), *middle.shape), np.float32)
    codes = np.empty_like(even)
    for number, (share, lowest) in enumerate(starts):
        np.subtract(even, lowest, out=codes)
        codes *= most / share
        sums.of(codes, most, tried[:, number])
    gains = sums.gain(tried)
    best = gains.argmax(axis=0).ravel()
    places = np.arange(best.size)
    found = tried.reshape(3, len(starts), -1)[:, best, places].reshape(3, *middle.shape)
    gain = gains.reshape(len(starts), -1)[best, places].reshape(middle.shape)
    scale, bias = sums.solve(found, 1 / most, np.float32(-0.5))

    def to_nearest() -> None:
        inverse = 1 / np.maximum(scale, _TINY)
        np.multiply(even, inverse, out=codes)
        np.subtract(codes, bias * inverse, out=codes)
        sums.of(codes, most, found)

    for _ in range(_REFITS):
        to_nearest()
        now = sums.gain(found)
        better = now > gain
        refit = sums.solve(found, scale, bias)
        scale, bias = np.where(better, refit[0], scale), np.where(better, refit[1], bias)
        gain = np.where(better, now, gain)
    # A bias is rounded to 8 bits, which with many codes is much of a step: the scale follows it.
    rounded = bfloat16_values(bias * width + middle)
    bias = (rounded - middle) / width
    to_nearest()
    ones, squares, target = found
    scale = np.where(squares > 0, (target - bias * ones) / np.maximum(squares, _TINY), scale)
    scale = bfloat16_values(np.maximum(scale, 0) * width)
    if bits > _COARSE:  # the nearest codes are others now
        inverse = np.where(scale > 0, width / np.maximum(scale, _TINY), 0)
        np.multiply(even, inverse, out=codes)
        np.subtract(codes, bias * inverse, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, np.float32(0), most, out=codes)
    return scale[:, 0], rounded[:, 0], codes


@lru_cache
def _starts(bits: int) -> tuple[tuple[np.float32, np.float32], ...]:
    """Return the ranges that are tried, as width and lower end of values from -1/2 to 1/2."""
    ends = _ENDS if bits <= _COARSE else (0.5,)
    return tuple(
        (np.float32(share), np.float32((1 - share) * end - 0.5))
        for share in np.linspace(*_SHARES[bits], _WIDTHS)
        for end in ends
    )


class _Sums:
    """Weighted sums over the weights of each group: of codes, of their squares, and of their
    products with the weights, (G, 1, R) each."""

    def __init__(self, weights: Floats, importance: Floats) -> None:
        """weights: (G, g, R). importance: (G, 1, g)."""
        self._weights, self._importance = weights, importance
        self._total = importance.sum(axis=-1, keepdims=True)
        self._first = importance @ weights
        self._scratch = np.empty_like(weights)

    def of(self, codes: Floats, most: np.float32, out: Floats) -> None:
        """Round codes in place, and write their sums to `out`, (3, G, 1, R)."""
        np.rint(codes, out=codes)
        np.clip(codes, np.float32(0), most, out=codes)
        np.matmul(self._importance, codes, out=out[0])
        np.square(codes, out=self._scratch)
        np.matmul(self._importance, self._scratch, out=out[1])
        np.multiply(codes, self._weights, out=self._scratch)
        np.matmul(self._importance, self._scratch, out=out[2])

    def gain(self, sums: Floats) -> Floats:
        """Return what the best scale takes off the squared error that a bias alone leaves, times
        the sum of the importance; negative where that scale is."""
        common, spread = self._products(sums)
        found = common * np.abs(common)
        return np.divide(found, spread, out=np.zeros_like(found), where=spread > 0)

    def solve(self, sums: Floats, scale: Floats | np.float32, bias: Floats | np.float32) -> Fit:
        """Return the scale and bias of the least squared error for codes; codes that are all the
        same keep `scale` and `bias`."""
        common, spread = self._products(sums)
        fits = (spread > 0) & (common > 0)
        s = np.where(fits, common / np.where(fits, spread, 1), scale)
        return s, np.where(fits, (self._first - s * sums[0]) / self._total, bias)

    def _products(self, sums: Floats) -> tuple[Floats, Floats]:
        """Return covariance of codes and weights, and variance of codes, both times the square of
        the sum of the importance; no variance where rounding alone has left some."""
        ones, squares, target = sums
        common = target * self._total
        common -= ones * self._first
        most = squares * self._total
        spread = most - ones * ones
        spread[spread <= np.float32(1e-6) * most] = 0
        return common, spread
