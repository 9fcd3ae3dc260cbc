"""An array that grows along its token axis, written in place."""

from __future__ import annotations

from magistral_mlx.backend import mx

GROWTH = 256  # tokens of capacity are a multiple of this


def grown_capacity(tokens: int, capacity: int, reserved: int) -> int:
    """Capacity after growing from `capacity` to hold `tokens`.

    It grows by an eighth at least, so that growing costs a token the same however many there are.
    """
    wanted = max(tokens, reserved, capacity + capacity // 8)
    return wanted + -wanted % GROWTH


class Buffer:
    """(B, H, capacity, D), where D and the dtype are those of what is first written.

    A buffer that grows is copied into a larger one. Layers grow one after the other within a
    step, so no more than one of them is held twice.
    """

    def __init__(self) -> None:
        self._array: mx.array | None = None
        self._reserved = 0

    @property
    def state(self) -> list[mx.array]:
        return [] if self._array is None else [self._array]

    @property
    def nbytes(self) -> int:
        return 0 if self._array is None else self._array.nbytes

    def reserve(self, tokens: int) -> None:
        """Make the next allocation hold at least `tokens` tokens."""
        self._reserved = max(self._reserved, tokens)

    def write(self, start: int, x: mx.array) -> None:
        """Put x, (B, H, L, D), at the tokens from `start` on."""
        end = start + x.shape[2]
        capacity = 0 if self._array is None else self._array.shape[2]
        if end > capacity:
            batch, heads, _, width = x.shape
            capacity_wanted = grown_capacity(end, capacity, self._reserved)
            more = mx.zeros((batch, heads, capacity_wanted - capacity, width), x.dtype)
            if self._array is None:
                self._array = more
            else:
                self._array = mx.concatenate([self._array, more], axis=2)
        assert self._array is not None
        self._array[:, :, start:end] = x

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
