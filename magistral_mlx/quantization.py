"""Arithmetic of MLX's weight quantization: stored shapes of a scheme, and its inference from them.

A quantized matrix of shape (out, in) is `weight`, packed into uint32 words (out, in * bits / 32),
and `scales` (out, in / group_size), with `biases` of the same shape in affine mode only.
Source: the documentation of `mlx.core.quantize`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Mode = Literal["affine", "mxfp4", "nvfp4", "mxfp8"]

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)

# The floating-point modes fix both figures: mode -> (bits, group size).
FIXED_MODES: dict[str, tuple[int, int]] = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}


@dataclass(frozen=True)
class Quantization:
    """A quantization scheme of a matrix."""

    bits: int = 4
    group_size: int = 64
    mode: Mode = "affine"

    @property
    def has_biases(self) -> bool:
        return self.mode == "affine"

    def weight_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the packed uint32 weight of an (out, in) matrix."""
        return shape[0], shape[1] * self.bits // 32

    def scales_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Shape of the scales (and biases) of an (out, in) matrix."""
        return shape[0], shape[1] // self.group_size

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can be quantized with this scheme."""
        return len(shape) == 2 and shape[1] % self.group_size == 0 and shape[1] % 32 == 0

    def nbytes(self, shape: tuple[int, int], scale_bytes: int = 2) -> int:
        """Bytes of an (out, in) matrix; `scale_bytes` is the size of one affine scale."""
        groups = self.scales_shape(shape)[0] * self.scales_shape(shape)[1]
        packed = self.weight_shape(shape)[0] * self.weight_shape(shape)[1] * 4
        return packed + groups * (2 * scale_bytes if self.has_biases else 1)


def infer(
    shape: tuple[int, int],
    weight: tuple[int, ...],
    scales: tuple[int, ...],
    *,
    has_biases: bool,
) -> Quantization | None:
    """Infer the scheme of a stored (out, in) matrix from the shapes of its parts.

    The shapes are sufficient, so a configuration that omits a layer or is wrong does no harm.
    Returns None if no scheme stores the matrix in these shapes.
    """
    out_features, in_features = shape
    if len(weight) != 2 or len(scales) != 2 or weight[0] != out_features or not scales[1]:
        return None
    bits, rest = divmod(weight[1] * 32, in_features)
    group_size, rest_of_group = divmod(in_features, scales[1])
    if rest or rest_of_group or scales[0] != out_features:
        return None
    if has_biases:
        known = bits in AFFINE_BITS and group_size in AFFINE_GROUP_SIZES
        return Quantization(bits, group_size) if known else None
    for mode, figures in FIXED_MODES.items():
        if figures == (bits, group_size):
            return Quantization(bits, group_size, mode)  # type: ignore[arg-type]
    return None
