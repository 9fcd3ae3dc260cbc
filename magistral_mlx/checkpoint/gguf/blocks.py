"""ggml's block types, decoded: weight = scale * level of its code + offset, by groups of 16 or 32.

Written from the published layout of each type (ggml's `ggml-common.h`); tests compare with the
`gguf` package. B is a number of blocks. Codes come in runs, as they lie in a block: the first of
all blocks, then the second: NumPy is fast on long arrays and slow on many short ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.checkpoint.gguf.header import BLOCKS

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# What the codes of IQ4_NL and IQ4_XS stand for, in units of the scale.
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Decoded:
    """codes: (runs, B, weights of a run); scale, offset: (B, groups), computed in float32.

    `levels` are what codes stand for where that is not themselves.
    """

    codes: Bytes
    scale: Floats
    offset: Floats
    levels: tuple[int, ...] | None = None

    def weights(self) -> Floats:
        """(B, weights of a block)"""
        blocks, groups = self.scale.shape
        codes = self.codes.swapaxes(0, 1).reshape(blocks, groups, -1)
        values = codes if self.levels is None else np.take(np.array(self.levels, np.float32), codes)
        weights = values * self.scale[..., None]
        weights += self.offset[..., None]
        return weights.reshape(blocks, -1)


def decode(kind: str, raw: Bytes) -> Decoded:
    """Decode blocks of a type.

    Args:
        kind: a quantized type of `BLOCKS`.
        raw: (B, bytes of a block).
    """
    return _DECODERS[kind](raw)


def is_quantized(kind: str) -> bool:
    """Whether a ggml type is one of blocks."""
    return kind in _DECODERS


def dequantize(kind: str, raw: Bytes) -> Floats:
    """Rows of a matrix in float32.

    Args:
        raw: (R, bytes of a row).

    Returns:
        (R, in)
    """
    return decode(kind, in_blocks(kind, raw)).weights().reshape(len(raw), -1)


def in_blocks(kind: str, raw: NDArray[Any]) -> Bytes:
    """Any run of bytes of a type as (B, bytes of a block)."""
    return raw.reshape(-1, BLOCKS[kind][1])


def _halfs(raw: Bytes) -> Floats:
    """(B, 2 n) bytes -> (B, n) of the float16 that they are"""
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _bits(packed: Bytes, shift: int, bits: int) -> Bytes:
    """`bits` of each byte, from bit `shift` on."""
    found = packed >> np.uint8(shift)
    found &= np.uint8(2**bits - 1)
    return found


def _nibbles(raw: Bytes, width: int) -> Bytes:
    """(B, n) -> (2 n / width, B, width): of each `width` bytes the low halves, then the high"""
    chunks = raw.shape[1] // width
    codes = np.empty((2 * chunks, len(raw), width), np.uint8)
    for chunk in range(chunks):
        packed = raw[:, chunk * width : (chunk + 1) * width]
        np.bitwise_and(packed, 15, out=codes[2 * chunk])
        np.right_shift(packed, 4, out=codes[2 * chunk + 1])
    return codes


def _add_bits(codes: Bytes, raw: Bytes, bits: int, place: int) -> None:
    """Set bits from `place` on: each run takes the next `bits` of the bytes (B, width)."""
    packed = np.ascontiguousarray(raw)
    for run in range(len(codes)):
        codes[run] |= _bits(packed, run * bits, bits) << np.uint8(place)


def _q4_0(raw: Bytes) -> Decoded:
    d = _halfs(raw[:, :2])
    return Decoded(_nibbles(raw[:, 2:], 16), d, -8 * d)


def _q4_1(raw: Bytes) -> Decoded:
    return Decoded(_nibbles(raw[:, 4:], 16), _halfs(raw[:, :2]), _halfs(raw[:, 2:4]))


def _with_fifth_bits(codes: Bytes, raw: Bytes) -> Bytes:
    """(2, B, 16) codes with the bits of (B, 4) bytes as their fifth ones."""
    fifth = np.unpackbits(np.ascontiguousarray(raw), axis=1, bitorder="little") << np.uint8(4)
    codes |= fifth.reshape(-1, 2, 16).swapaxes(0, 1)
    return codes


def _q5_0(raw: Bytes) -> Decoded:
    d = _halfs(raw[:, :2])
    return Decoded(_with_fifth_bits(_nibbles(raw[:, 6:], 16), raw[:, 2:6]), d, -16 * d)


def _q5_1(raw: Bytes) -> Decoded:
    codes = _with_fifth_bits(_nibbles(raw[:, 8:], 16), raw[:, 4:8])
    return Decoded(codes, _halfs(raw[:, :2]), _halfs(raw[:, 2:4]))


def _q8_0(raw: Bytes) -> Decoded:
    d = _halfs(raw[:, :2])
    return Decoded((raw[:, 2:] ^ np.uint8(128))[None], d, -128 * d)


def _k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """The first 16 bytes of Q4_K and Q5_K -> (B, 8) scales and offsets.

    Of the twelve bytes after d and dmin, the low six bits of the first eight are four scales and
    four minimums; their high two bits complete the nibbles of the last four to the others.
    """
    head = np.ascontiguousarray(raw[:, :16].T)  # (16, B): a few long rows
    low, middle, high = head[4:8], head[8:12], head[12:16]
    scales = np.concatenate([low & 63, (high & 15) | (low >> 6 << 4)])
    minimums = np.concatenate([middle & 63, (high >> 4) | (middle >> 6 << 4)])
    d, dmin = np.ascontiguousarray(head[:4].T).view("<f2").astype(np.float32).T
    return (d * scales).T, (-dmin * minimums).T


def _q4_k(raw: Bytes) -> Decoded:
    return Decoded(_nibbles(raw[:, 16:], 32), *_k_scales(raw))


def _q5_k(raw: Bytes) -> Decoded:
    codes = _nibbles(raw[:, 48:], 32)
    _add_bits(codes, raw[:, 16:48], 1, 4)
    return Decoded(codes, *_k_scales(raw))


def _q6_k(raw: Bytes) -> Decoded:
    codes = np.empty((8, len(raw), 32), np.uint8)
    for run, start in enumerate((0, 32, 0, 32, 64, 96, 64, 96)):
        shift = 4 * (run % 4 // 2)
        codes[run] = _bits(raw[:, start : start + 32], shift, 4)
    _add_bits(codes[:4], raw[:, 128:160], 2, 4)
    _add_bits(codes[4:], raw[:, 160:192], 2, 4)
    scale = _halfs(raw[:, 208:]) * np.ascontiguousarray(raw[:, 192:208]).view(np.int8)
    return Decoded(codes, scale, -32 * scale)


def _two_bits(raw: Bytes) -> Bytes:
    """(B, 64) -> (8, B, 32)"""
    codes = np.zeros((8, len(raw), 32), np.uint8)
    _add_bits(codes[:4], raw[:, :32], 2, 0)
    _add_bits(codes[4:], raw[:, 32:], 2, 0)
    return codes


def _nibble_scales(low: Bytes, high: Bytes) -> Floats:
    """Six-bit scales around 32: their low halves (B, n), and their high bits (B, n)"""
    return (low | high << 4).astype(np.float32) - 32


def _q3_k(raw: Bytes) -> Decoded:
    codes = _two_bits(raw[:, 32:96])
    _add_bits(codes, raw[:, :32], 1, 2)
    low = np.concatenate([raw[:, 96:104] & 15, raw[:, 96:104] >> 4], axis=1)
    high = np.concatenate([_bits(raw[:, 104:108], shift, 2) for shift in (0, 2, 4, 6)], axis=1)
    scale = _halfs(raw[:, 108:]) * _nibble_scales(low, high)
    return Decoded(codes, scale, -4 * scale)


def _q2_k(raw: Bytes) -> Decoded:
    scale = _halfs(raw[:, 80:82]) * (raw[:, :16] & 15)
    return Decoded(_two_bits(raw[:, 16:80]), scale, -_halfs(raw[:, 82:]) * (raw[:, :16] >> 4))


def _iq4_nl(raw: Bytes) -> Decoded:
    d = _halfs(raw[:, :2])
    return Decoded(_nibbles(raw[:, 2:], 16), d, np.zeros_like(d), IQ4_LEVELS)


def _iq4_xs(raw: Bytes) -> Decoded:
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(len(raw), 8)
    high = np.stack([_bits(raw[:, 2:4], shift, 2) for shift in (0, 2, 4, 6)], axis=2)
    scale = _halfs(raw[:, :2]) * _nibble_scales(low, high.reshape(len(raw), 8))
    return Decoded(_nibbles(raw[:, 8:], 16), scale, np.zeros_like(scale), IQ4_LEVELS)


_DECODERS: dict[str, Callable[[Bytes], Decoded]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip
