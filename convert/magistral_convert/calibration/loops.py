"""The loops of `search` over the groups of a matrix, compiled by Numba when they are first called.

Imported only where weights are searched: Numba comes with the extra `convert`. A compiled loop
holds no lock, so that threads run side by side. Sums are taken in any order, which lets them be
vectorised: results are the same from run to run on one machine.

Shapes: R rows, G groups of a row, g weights of a group. A group's weights are taken from -1/2 to
1/2, so that a range that is tried is the same for all groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

_Function = TypeVar("_Function", bound=Callable[..., Any])
Floats = NDArray[np.float32]
_F32 = np.float32
_Fit = tuple[np.float32, np.float32]  # scale, bias
_Sums = tuple[np.float32, np.float32, np.float32]  # over a group, weighted; see `_sums`

_ZERO, _HALF, _ONE = _F32(0), _F32(0.5), _F32(1)
_TINY = _F32(1e-12)
_ROUNDING = _F32(1e-6)  # share of a sum of squares that rounding alone leaves
_REFITS = 4
_HALVINGS = 2  # of steps from the best range
_COARSE = 15  # highest code up to which a scale that is rounded changes no codes that matter


def _compiled(function: _Function) -> _Function:
    fast = {"nsz", "arcp", "contract", "reassoc", "nnan"}
    return cast(_Function, numba.njit(nogil=True, error_model="numpy", fastmath=fast)(function))


def _exactly(function: _Function) -> _Function:
    return cast(_Function, numba.njit(nogil=True, error_model="numpy")(function))


@_compiled
def fit_groups(
    rows: Floats,
    importance: Floats,
    most: np.float32,
    starts: Floats,
    step: np.float32,
    scales: Floats,
    biases: Floats,
    codes: NDArray[np.uint8],
) -> None:
    """Search the scales and biases of rows; see `search`.

    Args:
        rows: (R, G * g). importance: (G, g).
        most: the highest code.
        starts: (S, 2), the ends of the ranges that are tried first.
        step: that the ends of the best are moved by.
        scales, biases: (R, G), written; values of bfloat16.
        codes: (R, G * g), written.
    """
    groups, size = importance.shape
    x = np.empty(size, np.float32)
    for row in range(len(rows)):
        for group in range(groups):
            here = slice(group * size, (group + 1) * size)
            weights, h = rows[row, here], importance[group]
            low, high = weights[0], weights[0]
            for n in range(size):
                low, high = min(low, weights[n]), max(high, weights[n])
            middle, width = (low + high) * _HALF, max(high - low, _TINY)
            inverse = _ONE / width
            for n in range(size):
                x[n] = (weights[n] - middle) * inverse
            found = _search(x, h, most, starts, step)
            scale, bias = _rounded(x, h, most, found, middle, width)
            scales[row, group], biases[row, group] = scale, bias
            factor, offset = _to_codes(scale * inverse, (bias - middle) * inverse)
            for n in range(size):
                codes[row, group * size + n] = np.uint8(_code(x[n], factor, offset, most))


@_compiled
def _search(x: Floats, h: Floats, most: np.float32, starts: Floats, step: np.float32) -> _Fit:
    """Return the scale and bias of a group, x with the importance h, (g,) each."""
    total, first = _ZERO, _ZERO
    for n in range(len(x)):
        total += h[n]
        first += h[n] * x[n]
    gain, low, high = -_ONE, -_HALF, _HALF
    best = (_ZERO, _ZERO, _ZERO)
    for n in range(len(starts)):
        start, end = starts[n]
        sums = _sums(x, h, most, *_to_codes((end - start) / most, start))
        found = _gain(sums, total, first)
        if found > gain:
            gain, best, low, high = found, sums, start, end
    for _ in range(_HALVINGS):
        around = ((low - step, high), (low + step, high), (low, high - step), (low, high + step))
        for start, end in around:
            sums = _sums(x, h, most, *_to_codes((end - start) / most, start))
            found = _gain(sums, total, first)
            if found > gain:
                gain, best, low, high = found, sums, start, end
        step *= _HALF
    scale, bias = _solve(best, total, first, (_ONE / most, -_HALF))
    for _ in range(_REFITS):
        sums = _sums(x, h, most, *_to_codes(scale, bias))
        found = _gain(sums, total, first)
        if found <= gain:
            break
        gain = found
        scale, bias = _solve(sums, total, first, (scale, bias))
    return scale, bias


@_compiled
def _rounded(
    x: Floats, h: Floats, most: np.float32, fit: _Fit, middle: np.float32, width: np.float32
) -> _Fit:
    """Return the scale and bias of a group's own values, as bfloat16 holds them.

    A bias is rounded to 8 bits, which with many codes is much of a step: the scale follows it, and
    there the neighbours of both are tried.
    """
    scale, bias = fit
    reach = 1 if most > _COARSE else 0
    nearest, least = _bfloat16(bias * width + middle), _F32(np.inf)
    best = (_ZERO, nearest)
    for away in range(-reach, reach + 1):
        tried = _neighbour(nearest, away)
        b = (tried - middle) / width
        ones, squares, target = _sums(x, h, most, *_to_codes(scale, b))
        s = (target - b * ones) / squares if squares > 0 else scale
        follows = _bfloat16(max(s, _ZERO) * width)
        if reach == 0:
            return follows, tried
        for further in range(-reach, reach + 1):
            s = _neighbour(follows, further)
            error = _error(x, h, most, s / width, b)
            if error < least:
                least, best = error, (s, tried)
    return best


@_compiled
def _to_codes(scale: np.float32, bias: np.float32) -> _Fit:
    """Return the factor and the offset of values whose whole parts are the nearest codes."""
    factor = _ONE / max(scale, _TINY)
    return factor, _HALF - bias * factor


@_compiled
def _code(x: np.float32, factor: np.float32, offset: np.float32, most: np.float32) -> np.float32:
    return min(max(np.floor(x * factor + offset), _ZERO), most)


@_compiled
def _sums(x: Floats, h: Floats, most: np.float32, factor: np.float32, offset: np.float32) -> _Sums:
    """Return the weighted sums of codes, of their squares, and of their products with x."""
    ones, squares, target = _ZERO, _ZERO, _ZERO
    for n in range(len(x)):
        code = _code(x[n], factor, offset, most)
        weighted = h[n] * code
        ones += weighted
        squares += weighted * code
        target += weighted * x[n]
    return ones, squares, target


@_compiled
def _error(
    x: Floats, h: Floats, most: np.float32, scale: np.float32, bias: np.float32
) -> np.float32:
    factor, offset = _to_codes(scale, bias)
    error = _ZERO
    for n in range(len(x)):
        code = _code(x[n], factor, offset, most)
        away = code * scale + bias - x[n]
        error += h[n] * away * away
    return error


@_compiled
def _gain(sums: _Sums, total: np.float32, first: np.float32) -> np.float32:
    """Return what the best scale takes off the squared error that a bias alone leaves, times
    `total`, the sum of the importance; negative where that scale is. first: the sum of h * x."""
    common, spread = _products(sums, total, first)
    if spread == 0:
        return _ZERO
    return common * abs(common) / spread


@_compiled
def _solve(sums: _Sums, total: np.float32, first: np.float32, fit: _Fit) -> _Fit:
    """Return the scale and bias of the least squared error for codes; codes that are all the same
    keep those of `fit`."""
    common, spread = _products(sums, total, first)
    if spread == 0 or common <= 0:
        return fit
    scale = common / spread
    return scale, (first - scale * sums[0]) / total


@_compiled
def _products(sums: _Sums, total: np.float32, first: np.float32) -> _Fit:
    """Return covariance of codes and x, and variance of codes, both times the square of `total`; no
    variance where rounding alone has left some."""
    ones, squares, target = sums
    spread = squares * total - ones * ones
    if spread <= _ROUNDING * squares * total:
        spread = _ZERO
    return target * total - ones * first, spread


@_exactly
def _bfloat16(value: np.float32) -> np.float32:
    """Return the nearest value of bfloat16, halves to even."""
    bits = _F32(value).view(np.uint32)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint32(bits & np.uint32(0xFFFF0000)).view(np.float32)


@_exactly
def _neighbour(value: np.float32, away: int) -> np.float32:
    """Return the value of bfloat16 that is so many away from another; zero has none."""
    if value == 0:
        return value
    return np.uint32(_F32(value).view(np.uint32) + np.uint32(away << 16)).view(np.float32)
