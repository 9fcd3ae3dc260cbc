"""Segments of a cache: neighbouring tokens whose keys and values are all plain or all packed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from magistral_mlx.backend import mx

_LARGEST = 65_280  # of bfloat16 within the range of float16


@dataclass(frozen=True)
class Packed:
    """A quantized (B, H_kv, S, D) array: the parts that `mx.quantize` returns along D."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int

    @property
    def parts(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.weight, self.scales, self.biases

    def tokens(self, start: int, end: int) -> Packed:
        """The tokens from `start` to `end`, as views."""
        weight, scales, biases = (part[:, :, start:end] for part in self.parts)
        return Packed(weight, scales, biases, self.bits, self.group_size)

    def heads(self, start: int, end: int) -> Packed:
        """The heads from `start` to `end`, as views."""
        weight, scales, biases = (part[:, start:end] for part in self.parts)
        return Packed(weight, scales, biases, self.bits, self.group_size)

    def unsqueezed(self) -> Packed:
        """(B, H_kv, 1, S, D), as a view."""
        weight, scales, biases = (part[:, :, None] for part in self.parts)
        return Packed(weight, scales, biases, self.bits, self.group_size)

    def split(self, tokens: int) -> Packed:
        """(B, H_kv, S / tokens, tokens, D), as a view."""
        weight, scales, biases = (
            part.reshape(*part.shape[:2], -1, tokens, part.shape[3]) for part in self.parts
        )
        return Packed(weight, scales, biases, self.bits, self.group_size)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def dequantize(self, dtype: mx.Dtype) -> mx.array:
        """The plain array, (B, H_kv, S, D)."""
        plain = mx.dequantize(*self.parts, group_size=self.group_size, bits=self.bits)
        return plain.astype(dtype)

    def matmul(self, x: mx.array, *, transpose: bool) -> mx.array:
        """Multiply x, (B, H_kv, …, rows, …), by this array: x @ self.T over D with `transpose`,
        else x @ self over tokens."""
        return mx.quantized_matmul(
            x, *self.parts, transpose=transpose, group_size=self.group_size, bits=self.bits
        )


def dequantized_copies(bits: int) -> int:
    """Arrays of float32 in memory while one of `bits` is dequantized on the CPU, itself included.

    MLX's CPU backend has no kernel for that. It shifts and masks whole arrays, of which 3, 5 and 6
    bits need more, as they cross the borders of words.
    """
    return 2 if bits in (2, 4, 8) else 7


class Segment(NamedTuple):
    """Neighbouring tokens of a cache: keys and values, both plain or both packed.

    keys, values: (B, H_kv, length, D).
    """

    keys: mx.array | Packed
    values: mx.array | Packed
    length: int

    @property
    def packed(self) -> bool:
        return isinstance(self.keys, Packed)

    @property
    def packed_bytes(self) -> int:
        """Bytes of packed keys and values, without spare capacity; 0 if they are plain."""
        return sum(x.nbytes for x in (self.keys, self.values) if isinstance(x, Packed))

    @property
    def dequantized_copies(self) -> int:
        """Float arrays of the segment's size while keys and values are dequantized; 0 if plain."""
        parts = (self.keys, self.values)
        return sum(dequantized_copies(x.bits) for x in parts if isinstance(x, Packed))

    @property
    def kv_heads(self) -> int:
        return (self.keys.weight if isinstance(self.keys, Packed) else self.keys).shape[1]

    def heads(self, start: int, end: int) -> Segment:
        """The key-value heads from `start` to `end`, as views."""
        keys, values = (
            x.heads(start, end) if isinstance(x, Packed) else x[:, start:end]
            for x in (self.keys, self.values)
        )
        return Segment(keys, values, self.length)

    def tokens(self, start: int, end: int) -> Segment:
        """The tokens from `start` to `end`, as views."""
        keys, values = (
            x.tokens(start, end) if isinstance(x, Packed) else x[:, :, start:end]
            for x in (self.keys, self.values)
        )
        return Segment(keys, values, end - start)

    def plain_keys(self, dtype: mx.Dtype) -> mx.array:
        """Keys as a plain array, dequantized to `dtype` if they are packed."""
        return self.keys.dequantize(dtype) if isinstance(self.keys, Packed) else self.keys

    def plain_values(self, dtype: mx.Dtype) -> mx.array:
        """Values as a plain array, dequantized to `dtype` if they are packed."""
        return self.values.dequantize(dtype) if isinstance(self.values, Packed) else self.values


@partial(mx.compile, shapeless=True)
def as_float16(x: mx.array) -> mx.array:
    """bfloat16 to float16, in one kernel; what is beyond its range becomes the largest value.

    Scores, and the scales of quantized tokens, lose more to rounding in bfloat16 than 8 bits do to
    quantization.
    """
    return mx.clip(x, -_LARGEST, _LARGEST).astype(mx.float16)
