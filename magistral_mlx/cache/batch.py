"""The cache of a batch: one layer's caches of several sequences, one per row.

Linear layers run once for all rows, so the weights are read once per pass. Attention reads each
row's own keys and values, so each row keeps its own cache, of any scheme and length, which is
trimmed, saved and reused independently.
"""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.sequence import SequenceCaches


def batch_caches(rows: Sequence[SequenceCaches]) -> SequenceCaches | BatchCaches:
    """Combine the caches of several sequences for a single pass.

    A batch of one sequence uses that sequence's caches directly.
    """
    if len(rows) == 1:
        return rows[0]
    return BatchCaches(rows)


class BatchCaches(list["BatchCache"]):
    """The caches of several sequences for a single pass, one for each layer.

    rows: the caches of each sequence.
    """

    def __init__(self, rows: Sequence[SequenceCaches]) -> None:
        self.rows = rows
        offset = mx.array([caches.length for caches in rows], mx.int32)
        super().__init__(BatchCache(layer, offset) for layer in zip(*rows, strict=True))


class BatchCache:
    """The caches of one layer for a single pass, one per row.

    offset: (B,) int32, the position of each row's first new token, shared by all layers.
    """

    def __init__(self, rows: Sequence[KVCache], offset: mx.array) -> None:
        self.offset = offset
        self._rows = rows

    @property
    def in_float16(self) -> bool:
        return all(cache.in_float16 for cache in self._rows)

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """Like `KVCache.attend`, with each row of (B, H, L, head_dim) using its own cache."""
        attended = [
            cache.attend(q[n : n + 1], k[n : n + 1], v[n : n + 1], scale=scale)
            for n, cache in enumerate(self._rows)
        ]
        return mx.concatenate(attended)
