"""Blocks of ggml laid out as MLX's quantized matrices.

Types in groups of 32 with up to 8 bits a code are affine as MLX's are: their codes are copied bit
for bit into `EXACT`, and only scale and offset are rounded to the dtype that they are stored in.
Scales for 16 weights, and levels that are not evenly spaced, fit nothing that MLX has. Those types
become the form in `FITTED`: the smallest affine one whose error, in root mean square, stays below
`BOUND` of the rounding error that the type itself has made; Q6_K a finer one, as mixes such as
Q4_K_M have it in their most sensitive matrices. The head is not fitted, as its errors
go straight to the answer: it becomes floating point, which costs a head of the full size 0.65 GB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.checkpoint.gguf.blocks import (
    Bytes,
    Decoded,
    Floats,
    decode,
    in_blocks,
    is_nibbles,
    packed_nibbles,
)
from magistral_mlx.quantization import Quantization

EXACT = {
    "Q4_0": Quantization(4, 32), "Q4_1": Quantization(4, 32), "Q4_K": Quantization(4, 32),
    "Q5_0": Quantization(5, 32), "Q5_1": Quantization(5, 32), "Q5_K": Quantization(5, 32),
    "Q8_0": Quantization(8, 32),
}  # fmt: skip
FITTED = {
    "Q6_K": Quantization(8, 32), "Q3_K": Quantization(5, 128), "Q2_K": Quantization(4, 128),
    "IQ4_NL": Quantization(5, 32), "IQ4_XS": Quantization(5, 32),
}  # fmt: skip
BOUND = 0.5
SCALES = "F16"  # what scales and offsets are stored in: of two bytes it loses least
# Weights that are laid out at once, few enough for a core's cache: as halves of bytes, or floats.
_NIBBLES, _FLOATS = 1 << 19, 1 << 18
_CODE_BITS = {"Q6_K": 6, "Q3_K": 3, "Q2_K": 2}


def form_of(kind: str) -> Quantization:
    """The quantization that a ggml type becomes."""
    return EXACT.get(kind) or FITTED[kind]


@dataclass(frozen=True)
class LaidOut:
    """Rows of a matrix in MLX's form. weight: (R, in * bits / 32); scales, biases: (R, groups)."""

    weight: NDArray[np.uint32]
    scales: Floats
    biases: Floats

    @property
    def is_finite(self) -> bool:
        """Whether `SCALES` holds every scale and offset, none of which is NaN."""
        largest = float(np.finfo(np.float16).max)
        return is_within(self.scales, largest) and is_within(self.biases, largest)


def is_within(values: Floats, largest: float) -> bool:
    """Whether no value is larger, above or below zero, and none is NaN."""
    return bool(values.max() <= largest and values.min() >= -largest)  # NaN if one of them is


def few_rows(rows: int, columns: int, weights: int = _FLOATS) -> Iterator[slice]:
    """Slices of all rows of a matrix, of as many as are decoded at once."""
    step = max(1, weights // columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def lay_out_rows(kind: str, raw: Bytes, columns: int, rooms: Sequence[NDArray[Any]]) -> bool:
    """Lay rows out, a few at a time, and cast them into arrays for the three parts of `LaidOut`.

    Args:
        raw: (R, bytes of a row), of so many columns each.

    Returns:
        Whether all of them are finite.
    """
    for few in few_rows(len(raw), columns, _NIBBLES if is_nibbles(kind) else _FLOATS):
        rows = lay_out(kind, raw[few])
        if not rows.is_finite:
            return False
        for room, part in zip(rooms, (rows.weight, rows.scales, rows.biases), strict=True):
            room[few] = part
    return True


def lay_out(kind: str, raw: Bytes) -> LaidOut:
    """Lay rows out as `form_of(kind)`.

    Args:
        raw: (R, bytes of a row).
    """
    blocks, scheme = in_blocks(kind, raw), form_of(kind)
    if is_nibbles(kind):
        decoded = packed_nibbles(kind, blocks)
        packed = decoded.codes
    else:
        decoded = decode(kind, blocks)
        if kind in FITTED:
            fit = _fit_levels if decoded.levels else _fit_groups
            decoded = fit(decoded, scheme, _CODE_BITS.get(kind, 4))
        packed = pack_codes(decoded.codes, scheme.bits)
    rows = len(raw)
    return LaidOut(
        packed.reshape(rows, -1).view("<u4"),
        decoded.scale.reshape(rows, -1),
        decoded.offset.reshape(rows, -1),
    )


def _fit_groups(decoded: Decoded, scheme: Quantization, code_bits: int) -> Decoded:
    """The nearest affine codes of larger groups, from the lowest to the highest weight that any
    code of theirs could stand for.

    They belong to scale and offset as they are stored and computed with, so that rounding those
    costs nothing more.
    """
    blocks, weights = decoded.codes.shape
    groups = weights // scheme.group_size
    ends = decoded.offset + np.float32(2**code_bits - 1) * decoded.scale
    lowest = _halved(np.minimum, np.minimum(decoded.offset, ends).reshape(blocks, groups, -1))
    highest = _halved(np.maximum, np.maximum(decoded.offset, ends).reshape(blocks, groups, -1))
    most = 2**scheme.bits - 1
    offset = _short(lowest)
    scale = _short((highest - offset) / most)
    steps = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    # A code c becomes c * factor + term, for every group of the blocks' own.
    own = decoded.scale.shape[1] // groups
    steps, start = np.repeat(steps, own, axis=1), np.repeat(offset, own, axis=1)
    factor = decoded.scale * steps
    term = (decoded.offset - start) * steps + np.float32(0.5)
    values = decoded.codes.astype(np.float32)
    by_group = values.reshape(*decoded.scale.shape, -1)
    by_group *= factor[..., None]
    by_group += term[..., None]
    np.clip(values, 0, most, out=values)
    return Decoded(values.astype(np.uint8), scale, offset)


def _halved(pick: np.ufunc, values: Floats) -> Floats:
    """(B, groups, a power of 2) -> (B, groups): `pick.reduce`, which is slow for a few values."""
    while (half := values.shape[-1] // 2) > 0:
        values = pick(values[..., :half], values[..., half:])
    return values[..., 0]


def _fit_levels(decoded: Decoded, scheme: Quantization, _: int) -> Decoded:
    """Levels on the even grid that is nearest to them, the same for every group."""
    assert decoded.levels
    step, start, codes = nearest_grid(decoded.levels, scheme.bits)
    return Decoded(np.take(codes, decoded.codes), decoded.scale * step, decoded.scale * start)


@cache
def nearest_grid(levels: tuple[int, ...], bits: int) -> tuple[np.float32, np.float32, Bytes]:
    """Step and start of the even grid with the least squared distance to levels that are used as
    normally distributed weights use them, and the code of each level there."""
    values, most = np.array(levels, float), 2**bits - 1
    ends = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    sigma = np.abs(values).max() / 2  # about what the largest of 32 weights leaves
    share = np.diff([_normal_share(end / sigma) for end in ends])
    span, best = np.ptp(values), (np.inf, 0.0, 0.0)
    for step in np.linspace(0.9, 1.1, 201) * span / most:
        for start in values[0] + np.linspace(-1, 1, 201) * step:
            found = np.clip(np.rint((values - start) / step), 0, most) * step + start
            best = min(best, (float(share @ (found - values) ** 2), float(step), float(start)))
    _, step, start = best
    codes = np.clip(np.rint((values - start) / step), 0, most).astype(np.uint8)
    return np.float32(step), np.float32(start), codes


def _normal_share(x: float) -> float:
    """The share of a standard normal distribution below x."""
    return (1 + math.erf(x / math.sqrt(2))) / 2


def reach(kind: str, raw: Bytes) -> Floats:
    """(R, bytes of a row) -> (R, groups of the type): what scale and offset of a group can reach
    together, which is no less than its largest weight."""
    decoded = decode(kind, in_blocks(kind, raw))
    if decoded.levels:
        most = max(map(abs, decoded.levels))
    else:
        most = 2 ** _CODE_BITS.get(kind, form_of(kind).bits) - 1
    return (np.abs(decoded.offset) + most * np.abs(decoded.scale)).reshape(len(raw), -1)


def _short(scales: Floats) -> Floats:
    """Scales rounded so that bfloat16 and `SCALES` both hold them, in float32."""
    nearest = bfloat16_bits(scales).astype(np.uint32) << np.uint32(16)
    return as_stored(nearest.view(np.float32))


def bfloat16_bits(values: Floats) -> NDArray[np.uint16]:
    """The bits of the nearest bfloat16 of each value, which NumPy does not have."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded.astype(np.uint16)


def as_stored(scales: Floats) -> Floats:
    """Scales rounded to `SCALES`, in float32; what is too large for it becomes infinite."""
    with np.errstate(over="ignore"):
        return scales.astype(np.float16).astype(np.float32)


def pack_codes(codes: Bytes, bits: int) -> Bytes:
    """(B, n) codes -> (B, n * bits / 8), a stream of bits, lowest first. n is a multiple of 32.

    Eight codes in the bytes of a word move together: neighbours join to pairs, pairs to fours,
    fours to all.
    """
    if bits == 8:
        return codes
    words = codes.view("<u8")
    if bits == 4:
        pairs = words >> np.uint64(4)
        pairs |= words
        return pairs.view("<u2").astype(np.uint8)  # each pair's low byte
    for lane in (8, 16, 32):  # bits of a lane, of which the lowest lane * bits / 8 are in use
        used = lane * bits // 8
        low = sum(((1 << used) - 1) << start for start in range(0, 64, 2 * lane))
        upper = words & np.uint64(low << lane)
        upper >>= np.uint64(lane - used)
        words = words & np.uint64(low)
        words |= upper
    eights = words.view(np.uint8).reshape(len(codes), -1, 8)[..., :bits]
    return np.ascontiguousarray(eights).reshape(len(codes), -1)


def deinterleave_heads(rows: NDArray[Any], halve_heads: int | None) -> NDArray[Any]:
    """Rows of whole heads from rope pairs (0, 1), (2, 3)… to halves (0, D/2)…

    Args:
        rows: (R, …).
        halve_heads: rows of a head, D; None leaves the rows as they are.
    """
    if not halve_heads:
        return rows
    pairs = rows.reshape(-1, halve_heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
