"""Rotary position embedding (RoPE: arXiv 2104.09864), and position-dependent query scaling.

The decoder rotates by a token's position, with plain frequencies or YaRN's (arXiv 2309.00071). An
image's patches have a row and a column: of the head_dim / 2 frequencies, those with an even index
rotate by the row, those with an odd index by the column. Source: Pixtral (arXiv 2410.07073) and its
reference implementation.
"""

from __future__ import annotations

import math

import numpy as np

from magistral_mlx.backend import mx
from magistral_mlx.config import QueryScaling, TextConfig, Yarn


class Rope:
    """The decoder's rope."""

    def __init__(self, config: TextConfig) -> None:
        self._dims = config.head_dim
        self._base: float | None = config.rope_theta
        self._wavelengths: mx.array | None = None
        if config.yarn:
            self._wavelengths = yarn_wavelengths(config.yarn, config.head_dim, config.rope_theta)
            self._base = None  # MLX takes one or the other

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """Rotate (B, H, L, head_dim) by positions from `offset` on: one for all rows, or (B,)."""
        return mx.fast.rope(
            x,
            self._dims,
            traditional=False,
            base=self._base,
            scale=1.0,
            offset=offset,
            freqs=self._wavelengths,
        )


def yarn_wavelengths(yarn: Yarn, head_dim: int, theta: float) -> mx.array:
    """Positions per radian for each pair of dimensions: (head_dim / 2,) float32."""
    plain = np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)

    def dimension(turns: float) -> float:
        """Dimension, as a real number, that makes `turns` turns within the original context."""
        radians = yarn.original_context / (turns * 2 * math.pi)
        return head_dim * math.log(radians) / (2 * math.log(theta))

    low, high = dimension(yarn.beta_fast), dimension(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    stretched = np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / width, 0, 1)
    frequencies = stretched / (yarn.factor * plain) + (1 - stretched) / plain
    return mx.array((1 / frequencies).astype(np.float32))


def score_scale(config: TextConfig) -> float:
    """Scale of the attention scores; YaRN's factor applies to queries and keys, so squared."""
    factor = config.yarn.query_key_factor if config.yarn else 1.0
    return config.head_dim**-0.5 * factor**2


def query_growth(
    scaling: QueryScaling | None, offset: int | mx.array, length: int
) -> float | mx.array | None:
    """Factors for queries at the positions from `offset` on.

    Args:
        offset: one position for all rows, or (B,).

    Returns:
        None for no scaling, one number if it is the same for all queries, else
        (B or 1, 1, length, 1) float32.
    """
    if scaling is None:
        return None
    span = scaling.original_context
    if isinstance(offset, int):
        if offset + length <= span:
            return None
        if offset // span == (offset + length - 1) // span:
            return 1.0 + scaling.beta * math.log1p(offset // span)
        positions = mx.arange(offset, offset + length)[None]
    else:
        positions = offset[:, None] + mx.arange(length)  # (B, L)
    scales = 1.0 + scaling.beta * mx.log1p((positions // span).astype(mx.float32))
    return scales[:, None, :, None]


def image_angles(height: int, width: int, head_dim: int, theta: float) -> mx.array:
    """Angles of every patch of an image, in row order: (height * width, head_dim / 2) float32."""
    frequencies = theta ** (-mx.arange(0, head_dim, 2, dtype=mx.float32) / head_dim)  # (D/2,)
    rows = mx.arange(height, dtype=mx.float32)[:, None] * frequencies[0::2]  # (height, D/4)
    columns = mx.arange(width, dtype=mx.float32)[:, None] * frequencies[1::2]  # (width, D/4)
    quarter = head_dim // 4
    angles = mx.concatenate(
        [
            mx.broadcast_to(rows[:, None], (height, width, quarter)),
            mx.broadcast_to(columns[None], (height, width, quarter)),
        ],
        axis=-1,
    )
    return angles.reshape(height * width, 2 * quarter)


def rotate(x: mx.array, angles: mx.array) -> mx.array:
    """Rotate each pair (i, i + D/2) of the last axis of x by its angle.

    Args:
        x: (B, H, L, D). angles: (L, D / 2).
    """
    cos, sin = mx.cos(angles).astype(x.dtype), mx.sin(angles).astype(x.dtype)
    first, second = mx.split(x, 2, axis=-1)
    return mx.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
