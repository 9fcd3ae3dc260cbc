"""The KV cache of one layer: what every scheme offers, and the one in full precision.

A layer hands its new queries, keys and values to `attend` and gets the attended values back; what
the cache stores, and how, stays in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import WORKSPACE, attend
from magistral_mlx.cache.buffer import Buffer
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.cache.segments import Segment


class LayerCache(Protocol):
    """What a layer asks of a cache, be it one sequence's or a batch's."""

    @property
    def offset(self) -> int | mx.array:
        """The position of the next token: one for all rows of a batch, or (B,) of their own."""

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Append keys and values, then attend causally over all that is held.

        Args:
            q: (B, H, L, head_dim). k, v: (B, H_kv, L, head_dim), rotated by rope already.

        Returns:
            (B, H, L, head_dim)
        """


class KVCache(LayerCache, Protocol):
    """The keys and values of one layer of one sequence."""

    length: int  # tokens held

    def append(self, k: mx.array, v: mx.array) -> None:
        """Take in keys and values, (B, H_kv, L, head_dim), as `attend` does, with no queries."""

    @property
    def state(self) -> list[mx.array]:
        """The arrays that hold the cache, to be evaluated together with a step's output."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""

    def reserve(self, tokens: int, most: int = 0) -> None:
        """Allocate for `tokens` at least, so that none must grow soon, and grow to no more than
        `most` while that is enough (0: no such bound)."""

    def trim(self, length: int) -> None:
        """Forget all tokens from position `length` on; a no-op if there are none."""

    def trimmable(self, length: int) -> int:
        """The longest beginning, of `length` tokens at most, that a trim gives back unchanged."""

    @property
    def resumable(self) -> Sequence[int]:
        """Lengths to go on from that are not made of the rows of single tokens alone."""

    def snapshot(self, most: int) -> None:
        """Make this length one that stays `trimmable`, where that takes anything; of such snapshots
        `most`, 3 or more, are kept."""

    def save(self, length: int | None = None) -> dict[str, mx.array]:
        """What is held of the first `length` tokens, without spare room, all of it by default.

        It is for `restore` on an empty cache of the same scheme. `length` is `trimmable`.
        """

    def restore(self, saved: dict[str, mx.array], length: int) -> None:
        """Take over what `save` gave from a cache of `length` tokens."""


def make_cache(scheme: KVScheme, workspace: int = WORKSPACE) -> KVCache:
    """An empty cache.

    Args:
        workspace: bytes that attention over it may take at once.
    """
    if not scheme.quantized:
        return FullKVCache(workspace)
    from magistral_mlx.cache.quantized import QuantizedKVCache

    return QuantizedKVCache(scheme, workspace)


class FullKVCache:
    """Keys and values in the model's own precision, appended in place."""

    def __init__(self, workspace: int = WORKSPACE) -> None:
        self.length = 0
        self._workspace = workspace
        self._keys, self._values = Buffer(), Buffer()

    @property
    def offset(self) -> int:
        return self.length

    @property
    def state(self) -> list[mx.array]:
        return [*self._keys.state, *self._values.state]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.state)

    def reserve(self, tokens: int, most: int = 0) -> None:
        self._keys.reserve(tokens, most)
        self._values.reserve(tokens, most)

    def trim(self, length: int) -> None:
        self.length = min(self.length, length)

    def append(self, k: mx.array, v: mx.array) -> None:
        self._keys.write(self.length, k)
        self._values.write(self.length, v)
        self.length += k.shape[2]

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        self.append(k, v)
        end = self.length
        held = Segment(self._keys.read(0, end), self._values.read(0, end), end)
        return attend(q, [held], scale=scale, workspace=self._workspace)

    def trimmable(self, length: int) -> int:
        return min(length, self.length)

    @property
    def resumable(self) -> Sequence[int]:
        return ()

    def snapshot(self, most: int) -> None:
        pass  # every length is

    def save(self, length: int | None = None) -> dict[str, mx.array]:
        length = self.length if length is None else length
        return {"keys": self._keys.read(0, length), "values": self._values.read(0, length)}

    def restore(self, saved: dict[str, mx.array], length: int) -> None:
        self.length = length
        self._keys.write(0, saved["keys"])
        self._values.write(0, saved["values"])
