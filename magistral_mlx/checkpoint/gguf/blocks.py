"""ggml's block types, decoded: weight = scale * level of its code + offset, by groups of 16 or 32.

Written from the published layout of each type (ggml's `ggml-common.h`); tests compare with the
`gguf` package. B is a number of blocks. Codes lie in a block in runs of 16 or 32: they are decoded
as the first run of all blocks, then the second, since NumPy is fast on long arrays and slow on many
short ones, and put into the order of the weights 16 bytes at a time.
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
    """codes: (B, weights of a block); scale, offset: (B, groups), computed in float32.

    `levels` are what codes stand for where that is not themselves.
    """

    codes: Bytes
    scale: Floats
    offset: Floats
    levels: tuple[int, ...] | None = None

    def weights(self) -> Floats:
        """(B, weights of a block)"""
        if self.levels is None:
            weights = self.codes.astype(np.float32)
        else:
            weights = np.take(np.array(self.levels, np.float32), self.codes)
        groups = weights.reshape(*self.scale.shape, -1)
        groups *= self.scale[..., None]
        groups += self.offset[..., None]
        return weights


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


_ITEM = np.complex128  # of 16 bytes, which NumPy copies at once


def _in_runs(raw: Bytes, width: int) -> Bytes:
    """(B, n) -> (n / width, B, width)"""
    items = raw.view(_ITEM).reshape(len(raw), -1, width // 16)
    return items.swapaxes(0, 1).copy().view(np.uint8)


def _in_order(runs: Bytes) -> Bytes:
    """(runs, B, width) -> (B, runs * width)"""
    items = np.ascontiguousarray(runs.view(_ITEM).swapaxes(0, 1))
    return items.view(np.uint8).reshape(runs.shape[1], -1)


def _nibbles(raw: Bytes, width: int, ahead: int = 1) -> Bytes:
    """(B, n) -> (2 n / width, B, width): the low halves of `ahead` runs of `width` bytes, then
    their high halves, then those of the next runs"""
    packed = _in_runs(raw, width).view(np.uint64).reshape(-1, ahead, len(raw), width // 8)
    low = np.uint64(0x0F0F0F0F0F0F0F0F)
    codes = np.empty((len(packed), 2, *packed.shape[1:]), np.uint64)
    np.bitwise_and(packed, low, out=codes[:, 0])
    np.right_shift(packed, np.uint64(4), out=packed)
    np.bitwise_and(packed, low, out=codes[:, 1])
    return codes.reshape(-1, *packed.shape[2:]).view(np.uint8)


def _add_bits(codes: Bytes, raw: Bytes, bits: int, place: int) -> None:
    """Set bits from `place` on: each run takes the next `bits` of the bytes (B, width)."""
    words, packed = codes.view(np.uint64), np.ascontiguousarray(raw).view(np.uint64)
    mask = np.uint64((2**bits - 1 << place) * 0x0101010101010101)
    for run in range(len(codes)):
        shift = place - run * bits
        moved = packed << np.uint64(shift) if shift > 0 else packed >> np.uint64(-shift)
        moved &= mask
        words[run] |= moved


def _q4_0_scales(raw: Bytes) -> tuple[Floats, Floats]:
    d = _halfs(raw[:, :2])
    return d, -8 * d


def _q4_1_scales(raw: Bytes) -> tuple[Floats, Floats]:
    return _halfs(raw[:, :2]), _halfs(raw[:, 2:4])


def _with_fifth_bits(codes: Bytes, raw: Bytes) -> Bytes:
    """(2, B, 16) codes -> (B, 32), with the bits of (B, 4) bytes as their fifth ones."""
    fifth = np.unpackbits(np.ascontiguousarray(raw), bitorder="little").reshape(-1, 32)
    fifth <<= np.uint8(4)
    fifth |= _in_order(codes)
    return fifth


def _q5_0(raw: Bytes) -> Decoded:
    d = _halfs(raw[:, :2])
    return Decoded(_with_fifth_bits(_nibbles(raw[:, 6:], 16), raw[:, 2:6]), d, -16 * d)


def _q5_1(raw: Bytes) -> Decoded:
    codes = _with_fifth_bits(_nibbles(raw[:, 8:], 16), raw[:, 4:8])
    return Decoded(codes, _halfs(raw[:, :2]), _halfs(raw[:, 2:4]))


def _q8_0(raw: Bytes) -> Decoded:
    d = _halfs(raw[:, :2])
    return Decoded(raw[:, 2:] ^ np.uint8(128), d, -128 * d)


def _k_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """The first 16 bytes of Q4_K and Q5_K -> (B, 8) scales and offsets.

    Of the twelve bytes after d and dmin, the low six bits of the first eight are four scales and
    four minimums; their high two bits complete the nibbles of the last four to the others. Four
    bytes are computed as a word.
    """
    low, middle, high = np.ascontiguousarray(raw[:, 4:16].view("<u4").T)
    six, nibble, top = np.uint32(0x3F3F3F3F), np.uint32(0x0F0F0F0F), np.uint32(0x30303030)
    two, four = np.uint32(2), np.uint32(4)
    words = np.empty((len(raw), 2, 2), "<u4")  # scales or minimums, the first or last four
    words[:, 0, 0] = low & six
    words[:, 0, 1] = (high & nibble) | (low >> two & top)
    words[:, 1, 0] = middle & six
    words[:, 1, 1] = (high >> four & nibble) | (middle >> two & top)
    factors = _halfs(raw[:, :4])
    factors[:, 1] *= -1
    found = words.view(np.uint8).reshape(-1, 2, 8).astype(np.float32)
    found *= factors[:, :, None]
    return found[:, 0], found[:, 1]


# Types whose codes are halves of bytes: the first byte of these, how many of them hold the codes of
# a run (in their low halves) and of the next one (in their high halves), and scales and offsets.
_NIBBLES: dict[str, tuple[int, int, Callable[[Bytes], tuple[Floats, Floats]]]] = {
    "Q4_0": (2, 16, _q4_0_scales), "Q4_1": (4, 16, _q4_1_scales), "Q4_K": (16, 32, _k_scales),
}  # fmt: skip


def is_nibbles(kind: str) -> bool:
    """Whether the codes of a type are halves of bytes, which `packed_nibbles` need not decode."""
    return kind in _NIBBLES


def packed_nibbles(kind: str, raw: Bytes) -> Decoded:
    """Decode blocks for which `is_nibbles`, and pack their codes two to a byte, the first one low.

    Args:
        raw: (B, bytes of a block).

    Returns:
        codes: (B, weights of a block / 2).
    """
    start, width, scales = _NIBBLES[kind]
    # Once the middle halves of each two bytes have changed places, the first byte holds two
    # codes of the one run, and the second two of the next.
    words = raw[:, start:].copy().view("<u8")
    moved = words >> np.uint64(4)
    moved ^= words
    moved &= np.uint64(0x00F000F000F000F0)
    words ^= moved
    moved <<= np.uint64(4)
    words ^= moved
    run = np.dtype(_ITEM if width == 32 else np.uint64)  # as many bytes as its packed codes
    packed = np.empty((words.nbytes // width, 2), run)
    packed[:, 0] = words.view("<u2").astype(np.uint8).reshape(-1).view(run)
    words >>= np.uint64(8)
    packed[:, 1] = words.view("<u2").astype(np.uint8).reshape(-1).view(run)
    return Decoded(packed.view(np.uint8).reshape(len(raw), -1), *scales(raw))


def _of_nibbles(kind: str) -> Callable[[Bytes], Decoded]:
    start, width, scales = _NIBBLES[kind]
    return lambda raw: Decoded(_in_order(_nibbles(raw[:, start:], width)), *scales(raw))


def _q5_k(raw: Bytes) -> Decoded:
    codes = _nibbles(raw[:, 48:], 32)
    _add_bits(codes, raw[:, 16:48], 1, 4)
    return Decoded(_in_order(codes), *_k_scales(raw))


def _q6_k(raw: Bytes) -> Decoded:
    # Of each 64 bytes the low halves are two runs, and the high halves the next two.
    codes = _nibbles(raw[:, :128], 32, ahead=2)
    _add_bits(codes[:4], raw[:, 128:160], 2, 4)
    _add_bits(codes[4:], raw[:, 160:192], 2, 4)
    scale = _halfs(raw[:, 208:]) * np.ascontiguousarray(raw[:, 192:208]).view(np.int8)
    return Decoded(_in_order(codes), scale, -32 * scale)


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
    return Decoded(_in_order(codes), scale, -4 * scale)


def _q2_k(raw: Bytes) -> Decoded:
    scale = _halfs(raw[:, 80:82]) * (raw[:, :16] & 15)
    offset = -_halfs(raw[:, 82:]) * (raw[:, :16] >> 4)
    return Decoded(_in_order(_two_bits(raw[:, 16:80])), scale, offset)


def _iq4_nl(raw: Bytes) -> Decoded:
    d = _halfs(raw[:, :2])
    return Decoded(_in_order(_nibbles(raw[:, 2:], 16)), d, np.zeros_like(d), IQ4_LEVELS)


def _iq4_xs(raw: Bytes) -> Decoded:
    low = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(len(raw), 8)
    high = np.stack([_bits(raw[:, 2:4], shift, 2) for shift in (0, 2, 4, 6)], axis=2)
    scale = _halfs(raw[:, :2]) * _nibble_scales(low, high.reshape(len(raw), 8))
    codes = _in_order(_nibbles(raw[:, 8:], 16))
    return Decoded(codes, scale, np.zeros_like(scale), IQ4_LEVELS)


_DECODERS: dict[str, Callable[[Bytes], Decoded]] = {
    **{kind: _of_nibbles(kind) for kind in _NIBBLES}, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs,
}  # fmt: skip
