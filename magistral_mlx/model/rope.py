"""Rotary position embedding over the two axes of a picture (RoPE: arXiv 2104.09864).

The decoder's one-dimensional rope is `mx.fast.rope`. A picture's patches have a row and a column:
of the head_dim / 2 frequencies, those with an even index turn with the row, those with an odd
index with the column. Source: Pixtral (arXiv 2410.07073) and its reference implementation.
"""

from __future__ import annotations

from magistral_mlx.backend import mx


def picture_angles(height: int, width: int, head_dim: int, theta: float) -> mx.array:
    """Angles of every patch of a picture, in row order: (height * width, head_dim / 2) float32."""
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
