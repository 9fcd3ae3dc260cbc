"""Choice of scales in MLX's floating-point formats: mxfp4, nvfp4, mxfp8.

A group has one scale and no offset, and the scale lies in a grid: a power of two (E8M0) for mxfp4
and mxfp8, a number of 3 bits of mantissa (E4M3) for nvfp4. MLX takes the scale that the largest
value of the group fits under. Its neighbours in the grid clip a few values or waste a part of the
range, and often give the others a smaller error: each is tried, and the least weighted squared
error wins. MLX's own is tried first, so a result is never worse than it.

NumPy goes through tiles that stay in a core's cache, in several threads.

Shapes: R rows, G groups of a row, g weights of a group. A tile has N groups of whole rows, (g, N),
so that every operation runs along the groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_convert.calibration.search import group_importance
from magistral_mlx.backend import mx
from magistral_mlx.quantization import Quantization

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Packed = tuple[mx.array, mx.array]  # weight, scales

_TILE = 1 << 17  # weights that are searched together
_FRACTION = 23  # bits of mantissa of a float32
_EXPONENT = np.int32(0x7F800000)  # bits of its exponent
_ONE = 127  # code of the scale 1 in E8M0


class _Grid:
    """Floating-point numbers of a few bits that are not negative, with subnormal ones and without
    infinities.

    A float32 that has 2^23 steps of the grid added to it is rounded to a whole step, halves to
    even, and its lowest bits count the steps.
    """

    def __init__(self, mantissa: int, least: float, most: float) -> None:
        """mantissa: bits. least: the smallest normal number. most: the largest number."""
        self.most = np.float32(most)
        self._mantissa = mantissa
        self._to_steps = np.int32((_FRACTION - mantissa) << _FRACTION)
        self._least, self._most = np.array([least, most], np.float32).view(np.int32)

    def round(self, x: Floats, steps: Floats) -> None:
        """Round to the nearest numbers, in place; `steps` is scratch of the same shape."""
        self._add_steps(x, steps)
        x -= steps

    def encode(self, x: Floats, steps: Floats) -> Codes:
        """Return the codes of the nearest numbers; overwrites both arrays."""
        self._add_steps(x, steps)
        codes, added = x.view(np.int32), steps.view(np.int32)
        codes -= added
        added -= self._least + self._to_steps
        added >>= _FRACTION - self._mantissa
        codes += added
        return codes.astype(np.uint8)

    def values(self) -> Floats:
        """Return the values of all codes, in order."""
        parts = 1 << self._mantissa
        last = self.encode(np.array([self.most]), np.empty(1, np.float32))[0]
        exponents, part = np.divmod(np.arange(last + 1), parts)
        least = float(self._least.view(np.float32))
        normal = (1 + part / parts) * least * 2.0 ** (exponents - 1)
        return np.where(exponents > 0, normal, part / parts * least).astype(np.float32)

    def _add_steps(self, x: Floats, steps: Floats) -> None:
        """Add 2^23 steps of the nearest numbers to x, and write them to `steps`. Floats that are
        not negative are ordered as their bits are. NumPy is fastest with rows of constants."""
        bits, added = x.view(np.int32), steps.view(np.int32)
        least, most = (np.full(x.shape[-1], value) for value in (self._least, self._most))
        np.minimum(bits, most, out=bits)
        np.bitwise_and(bits, _EXPONENT, out=added)
        np.maximum(added, least, out=added)
        added += self._to_steps
        x += steps


E2M1, E4M3 = _Grid(1, 1.0, 6.0), _Grid(3, 2.0**-6, 448.0)


@dataclass(frozen=True)
class _Mode:
    """One of MLX's modes.

    elements: what a scale is multiplied by. sign: bit of their codes. signs_zero: whether a
    negative weight that becomes zero keeps its sign, as in MLX.
    scales: values of the codes of scales. own: (N,) largest elements for a scale of one -> codes of
    the scales that MLX takes. tries: codes that are tried, from those.
    """

    elements: _Grid
    sign: int
    signs_zero: bool
    scales: Floats
    own: Callable[[Floats], NDArray[np.integer]]
    tries: tuple[int, ...]


def _next_powers(ratios: Floats) -> NDArray[np.integer]:
    """Return the codes of the powers of two that are not smaller; 1 for groups of zeros."""
    codes = (ratios.view(np.int32) + ((1 << _FRACTION) - 1)) >> _FRACTION
    return np.where(ratios > 0, codes, _ONE)


def _nearest_e4m3(ratios: Floats) -> NDArray[np.integer]:
    return E4M3.encode(ratios, np.empty_like(ratios)).astype(np.int32)


_E8M0 = (np.arange(255, dtype=np.int32) << _FRACTION).view(np.float32)
MODES = {
    "mxfp4": _Mode(E2M1, 0x8, False, _E8M0, _next_powers, (-2, -1, 1)),
    "mxfp8": _Mode(E4M3, 0x80, True, _E8M0, _next_powers, (-2, -1, 1)),
    "nvfp4": _Mode(E2M1, 0x8, False, E4M3.values(), _nearest_e4m3, (-6, -5, -4, -3, -2, -1, 1, 2)),
}


def search_floating(rows: Floats, importance: Floats, scheme: Quantization) -> Packed:
    """Quantize rows with searched scales.

    Args:
        rows: (R, columns) float32, values of bfloat16.
        importance: (columns,) float32, not negative: what a squared error in each column counts.
        scheme: of a floating-point mode.

    Returns:
        weight (R, columns * bits / 32) uint32 and scales (R, G) uint8, as `mx.quantize` gives them.
    """
    count, columns = rows.shape
    mode, size = MODES[scheme.mode], scheme.group_size
    scales = np.empty((count, columns // size), np.uint8)
    codes = np.empty((count, columns // size, size), np.uint8)
    step = max(1, _TILE // columns)
    weight = np.tile(group_importance(importance, scheme).T, step)  # (g, groups of a tile)
    for start in range(0, count, step):
        here = slice(start, min(start + step, count))
        x = np.ascontiguousarray(rows[here].reshape(-1, size).T)
        found, elements = _search_tile(x, weight[:, : x.shape[1]], mode)
        scales[here] = found.reshape(scales[here].shape)
        codes[here] = elements.T.reshape(codes[here].shape)
    return _pack(codes.reshape(rows.shape), scheme.bits), mx.array(scales)


def _search_tile(x: Floats, importance: Floats, mode: _Mode) -> tuple[Codes, Codes]:
    """Search the scales of a tile, (g, N), each weight with its importance.

    Returns:
        codes of scales, (N,), and of elements, (g, N).
    """
    size = np.abs(x)
    scratch, steps = np.empty((2, *x.shape), np.float32)

    def divide(scale: Floats) -> None:
        """Write sizes by scale, (N,), to `scratch`."""
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        np.multiply(size, inverse, out=scratch)

    own = mode.own(size.max(axis=0) / mode.elements.most)
    best, least = own, np.full(len(own), np.inf, np.float32)
    for distance in (0, *mode.tries):
        tried = np.clip(own + distance, 0, len(mode.scales) - 1)
        scale = mode.scales[tried]
        divide(scale)
        mode.elements.round(scratch, steps)
        np.multiply(scratch, scale, out=scratch)
        np.subtract(scratch, size, out=scratch)
        with np.errstate(over="ignore"):  # weights above 1e19 keep MLX's own scale
            np.square(scratch, out=scratch)
            np.multiply(scratch, importance, out=scratch)
            error = scratch.sum(axis=0)
        better = error < least
        best, least = np.where(better, tried, best), np.where(better, error, least)
    divide(mode.scales[best])
    elements = mode.elements.encode(scratch, steps)
    negative = np.signbit(x)
    if not mode.signs_zero:
        negative &= elements > 0
    elements |= negative.view(np.uint8) * np.uint8(mode.sign)
    return best.astype(np.uint8), elements


def _pack(codes: Codes, bits: int) -> mx.array:
    """Pack codes (R, columns) into uint32 words, the first in the lowest bits, as MLX does."""
    octets = codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4
    return mx.array(octets.view("<u4"))
