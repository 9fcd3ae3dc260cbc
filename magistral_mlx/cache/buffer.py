"""Arrays that grow along their token axis, written in place: plain and quantized."""

from __future__ import annotations

from magistral_mlx.backend import mx
from magistral_mlx.cache.segments import Packed

GRANULE = 256  # tokens of capacity are a multiple of this


def rounded(tokens: int) -> int:
    """Capacity that is allocated for `tokens`: the next multiple of `GRANULE`."""
    return tokens + -tokens % GRANULE


class Buffer:
    """An array (B, H, capacity, D); the first write determines D and the dtype.

    The capacity grows by at least an eighth, so the cost per token is constant. The larger array
    is evaluated at once, so that only one layer's buffer exists twice at a time.
    """

    def __init__(self, spare: int = 0) -> None:
        """Make an empty buffer.

        Args:
            spare: tokens of capacity, at least, after those that are written.
        """
        self._array: mx.array | None = None
        self._spare = spare
        self._capacity = self._reserved = self._most = 0

    @property
    def state(self) -> list[mx.array]:
        return [] if self._array is None else [self._array]

    def reserve(self, tokens: int, most: int = 0) -> None:
        """Allocate at least `tokens` with the next write, and do not over-allocate beyond `most`
        (0: no bound)."""
        self._reserved = max(self._reserved, tokens)
        self._most = most

    def write(self, start: int, x: mx.array) -> None:
        """Write x, (B, H, L, D), to the tokens from `start` on."""
        end = start + x.shape[2]
        if end + self._spare > self._capacity:
            self._grow(x, end)
        assert self._array is not None
        self._array[:, :, start:end] = x

    def _grow(self, x: mx.array, tokens: int) -> None:
        capacity = self._capacity
        grown = capacity + capacity // 8
        grown = min(grown, self._most + self._spare) if self._most else grown
        wanted = rounded(max(max(tokens, self._reserved) + self._spare, grown))
        batch, heads, _, width = x.shape
        more = mx.zeros((batch, heads, wanted - capacity, width), x.dtype)
        if self._array is None:
            self._array = more
        else:
            self._array = mx.concatenate([self._array, more], axis=2)
            mx.eval(self._array)
        self._capacity = wanted

    def read(self, start: int, end: int) -> mx.array:
        """The tokens from `start` to `end`, a view of (B, H, end - start, D). They may be spare."""
        assert self._array is not None, "nothing has been written yet"
        return self._array[:, :, start:end]

    def drop(self, start: int, end: int, count: int) -> None:
        """Drop the tokens from `start` to `end`, moving the `count` ones after them to `start`."""
        if self._array is None or start == end:
            return
        parts = [self._array[:, :, :start], self._array[:, :, end : end + count]]
        spare = mx.zeros_like(self._array[:, :, start + count :])
        self._array = mx.concatenate([*parts, spare], axis=2)


class PackedBuffer:
    """Quantized tokens in growing buffers, one for each part that `mx.quantize` returns."""

    def __init__(self, bits: int, group_size: int, spare: int = 0) -> None:
        self._bits, self._group_size = bits, group_size
        self._parts = (Buffer(spare), Buffer(spare), Buffer(spare))

    @property
    def state(self) -> list[mx.array]:
        return [array for part in self._parts for array in part.state]

    def reserve(self, tokens: int, most: int = 0) -> None:
        for part in self._parts:
            part.reserve(tokens, most)

    def write(self, start: int, x: mx.array) -> None:
        """Quantize x, (B, H_kv, L, D), and write it to the tokens from `start` on."""
        quantized = mx.quantize(x, group_size=self._group_size, bits=self._bits)
        self.write_parts(start, quantized)

    def write_parts(self, start: int, parts: tuple[mx.array, ...]) -> None:
        for buffer, part in zip(self._parts, parts, strict=True):
            buffer.write(start, part)

    def read(self, end: int) -> Packed:
        weight, scales, biases = (part.read(0, end) for part in self._parts)
        return Packed(weight, scales, biases, self._bits, self._group_size)
