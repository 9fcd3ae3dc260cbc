"""The KV cache of one layer, in unified memory.

A layer hands its new queries, keys and values to `attend` and gets the attended values back; what
the cache stores, and how, stays in here.
"""

from __future__ import annotations

from magistral_mlx.backend import attention, mx

GROWTH = 256  # tokens of capacity that are added at once


class KVCache:
    """Keys and values in full precision, appended in place, with room that grows in blocks."""

    def __init__(self) -> None:
        self.length = 0  # tokens held
        self._reserved = 0
        self._keys: mx.array | None = None  # (B, H_kv, capacity, head_dim)
        self._values: mx.array | None = None

    @property
    def state(self) -> list[mx.array]:
        """The arrays that hold the cache, to be evaluated together with a step's output."""
        return [x for x in (self._keys, self._values) if x is not None]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(x.nbytes for x in self.state)

    def reserve(self, tokens: int) -> None:
        """Make the next allocation hold at least `tokens` tokens, so that none must grow soon."""
        self._reserved = max(self._reserved, tokens)

    def trim(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self.length = min(self.length, length)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Append keys and values, then attend causally over all that is held.

        Args:
            q: (B, H, L, head_dim). k, v: (B, H_kv, L, head_dim), rotated already.

        Returns:
            (B, H, L, head_dim)
        """
        end = self.length + k.shape[2]
        self._make_room(k, end)
        assert self._keys is not None and self._values is not None
        self._keys[:, :, self.length : end] = k
        self._values[:, :, self.length : end] = v
        self.length = end
        keys, values = self._keys[:, :, :end], self._values[:, :, :end]
        return attention(q, keys, values, scale=scale, causal=True)

    def _make_room(self, k: mx.array, tokens: int) -> None:
        capacity = 0 if self._keys is None else self._keys.shape[2]
        if tokens <= capacity:
            return
        wanted = max(tokens, self._reserved)
        wanted += -wanted % GROWTH
        batch, heads, _, head_dim = k.shape
        more = mx.zeros((batch, heads, wanted - capacity, head_dim), k.dtype)
        if self._keys is None or self._values is None:
            self._keys, self._values = more, mx.zeros_like(more)
        else:
            self._keys = mx.concatenate([self._keys, more], axis=2)
            self._values = mx.concatenate([self._values, more], axis=2)
