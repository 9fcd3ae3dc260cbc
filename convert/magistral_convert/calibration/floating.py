"""Choice of scales in MLX's floating-point formats: mxfp4, nvfp4, mxfp8.

A group has one scale and no offset, and the scale lies in a grid: a power of two (E8M0) for mxfp4
and mxfp8, a number of 3 bits of mantissa (E4M3) for nvfp4. MLX takes the scale that the largest
value of the group fits under. Its neighbours in the grid clip a few values or waste a part of the
range, and often give the others a smaller error: each is tried, and the least weighted squared
error wins. MLX's own is tried first, so a result is never worse than it.

Shapes: R rows, G groups of a row, g weights of a group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from magistral_convert.calibration.search import group_importance
from magistral_mlx.backend import mx
from magistral_mlx.quantization import Quantization

# Scales that are tried, as steps in the grid from MLX's own.
_STEPS = {"mxfp4": (-2, -1, 1), "mxfp8": (-2, -1, 1), "nvfp4": (-6, -5, -4, -3, -2, -1, 1, 2)}
_MOST_E8M0, _MOST_E4M3 = 254, 126  # codes above are no numbers
_MOST_FP4, _MOST_FP8 = 6.0, 448.0

Floats = NDArray[np.float32]
Packed = tuple[mx.array, mx.array]  # weight, scales
Best = tuple[mx.array, mx.array]  # error and code of the scale of each group, (R, G)


def search_floating(rows: Floats, importance: Floats, scheme: Quantization) -> Packed:
    """Quantize rows with searched scales.

    Args:
        rows: (R, columns) float32, values of bfloat16.
        importance: (columns,) float32, not negative: what a squared error in each column counts.
        scheme: of a floating-point mode.

    Returns:
        weight (R, columns * bits / 32) uint32 and scales (R, G) uint8, as `mx.quantize` gives them.
    """
    mode = scheme.mode
    weights = mx.array(rows)
    groups = weights.reshape(len(rows), -1, scheme.group_size)
    weight_of = mx.array(group_importance(importance, scheme))
    plain = mx.quantize(
        weights.astype(mx.bfloat16), group_size=scheme.group_size, bits=scheme.bits, mode=mode
    )
    most = _MOST_E4M3 if mode == "nvfp4" else _MOST_E8M0
    own = plain[1].astype(mx.int32)
    step = _compiled(mode)
    best = step(groups, weight_of, own, mx.full(own.shape, np.inf), own)
    for distance in _STEPS[mode]:
        best = step(groups, weight_of, mx.clip(own + distance, 0, most), *best)
    found = best[1]
    values = _nearest(groups, _decode(found, mode), mode)
    packed = _pack(values.reshape(rows.shape), mode)
    return packed, found.astype(mx.uint8)


def _decode(codes: mx.array, mode: str) -> mx.array:
    """Decode scales; a code of zero, which plain rounding gives to groups of zeros, is zero."""
    if mode == "nvfp4":
        found: mx.array = mx.from_fp8(codes.astype(mx.uint8), mx.float32)
        return found
    return mx.left_shift(codes.astype(mx.uint32), 23).view(mx.float32)  # the exponent of a float


def _nearest(groups: mx.array, scales: mx.array, mode: str) -> mx.array:
    """Return the nearest values of a format, before their scale: (R, G, g) float32."""
    inverse = mx.where(scales > 0, 1 / mx.where(scales > 0, scales, 1), 0)[..., None]
    x = groups * inverse
    if mode == "mxfp8":
        codes = mx.to_fp8(mx.clip(x, -_MOST_FP8, _MOST_FP8))
        found: mx.array = mx.from_fp8(codes, mx.float32)
        return found
    x = mx.clip(x, -_MOST_FP4, _MOST_FP4)
    size = mx.abs(x)
    # Steps of a half up to 2, of one up to 4, of two up to 6.
    step = mx.where(size < 2, 0.5, mx.where(size < 4, 1.0, 2.0))
    return mx.round(x * mx.where(size < 2, 2.0, mx.where(size < 4, 1.0, 0.5))) * step


def _pack(values: mx.array, mode: str) -> mx.array:
    """Pack values (R, columns) into uint32 words, the first in the lowest bits, as MLX does."""
    if mode == "mxfp8":
        codes, bits = mx.to_fp8(values).astype(mx.uint32), 8
    else:
        size = mx.abs(values)
        place = mx.where(size <= 2, 2 * size, mx.where(size <= 4, size + 2, 7.0))
        codes, bits = (place + mx.where(values < 0, 8, 0)).astype(mx.uint32), 4
    runs = codes.reshape(values.shape[0], -1, 32 // bits)
    shifts = mx.arange(0, 32, bits).astype(mx.uint32)
    return mx.left_shift(runs, shifts).sum(axis=-1).astype(mx.uint32)


@lru_cache
def _compiled(mode: str) -> Callable[..., Best]:
    def step(
        groups: mx.array, importance: mx.array, codes: mx.array, error: mx.array, best: mx.array
    ) -> Best:
        """Compute the errors with scales (R, G), as codes; keep what is better."""
        scales = _decode(codes, mode)
        difference = _nearest(groups, scales, mode) * scales[..., None] - groups
        found = (difference * difference * importance).sum(axis=-1)
        better = found < error
        return mx.where(better, found, error), mx.where(better, codes, best)

    compiled: Callable[..., Best] = mx.compile(step)
    return compiled
