"""An array that grows along its token axis, written in place."""

from __future__ import annotations

from magistral_mlx.backend import mx

GRANULE = 256  # tokens of capacity are a multiple of this


def rounded(tokens: int) -> int:
    """Tokens of capacity that are allocated for `tokens`."""
    return tokens + -tokens % GRANULE


class Buffer:
    """(B, H, capacity, D), where D and the dtype are those of what is first written.

    It grows by an eighth at least, so that growing costs a token the same however many there are,
    and is copied into the larger array at once: no two layers are ever held twice.
    """

    def __init__(self) -> None:
        self._array: mx.array | None = None
        self._capacity = self._reserved = self._most = 0

    @property
    def state(self) -> list[mx.array]:
        return [] if self._array is None else [self._array]

    def reserve(self, tokens: int, most: int = 0) -> None:
        """Allocate for `tokens` at least, and grow to no more than `most` while that is enough."""
        self._reserved = max(self._reserved, tokens)
        self._most = most

    def write(self, start: int, x: mx.array) -> None:
        """Put x, (B, H, L, D), at the tokens from `start` on."""
        end = start + x.shape[2]
        if end > self._capacity:
            self._grow(x, end)
        assert self._array is not None
        self._array[:, :, start:end] = x

    def _grow(self, x: mx.array, tokens: int) -> None:
        capacity = self._capacity
        grown = capacity + capacity // 8
        grown = min(grown, self._most) if self._most else grown
        wanted = rounded(max(tokens, self._reserved, grown))
        batch, heads, _, width = x.shape
        more = mx.zeros((batch, heads, wanted - capacity, width), x.dtype)
        if self._array is None:
            self._array = more
        else:
            self._array = mx.concatenate([self._array, more], axis=2)
            mx.eval(self._array)
        self._capacity = wanted

    def read(self, start: int, end: int) -> mx.array:
        """The tokens from `start` to `end`, a view of (B, H, end - start, D)."""
        assert self._array is not None, "nothing has been written yet"
        return self._array[:, :, start:end]

    def drop(self, start: int, count: int) -> None:
        """Move the `count` tokens from `start` on to the front."""
        if self._array is None or start == 0:
            return
        kept = self._array[:, :, start : start + count]
        spare = mx.zeros_like(self._array[:, :, count:])
        self._array = mx.concatenate([kept, spare], axis=2)
