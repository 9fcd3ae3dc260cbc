"""One layer's caches of several sequences, as the cache of a batch with as many rows.

The linear layers run once for all rows, which is what a pass over the weights pays for. Attention
reads each row's own keys and values, so each row goes to its own cache: of any scheme and length,
trimmed, saved and reused as if it were alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache, LayerCache


def batch_caches(rows: Sequence[Sequence[KVCache]]) -> Sequence[LayerCache]:
    """The caches of each row, one a layer -> those of the batch, one a layer, for a single pass.

    A batch of one is the row itself.
    """
    if len(rows) == 1:
        return rows[0]
    offset = mx.array([caches[0].length for caches in rows], mx.int32)
    return [BatchCache(layer, offset) for layer in zip(*rows, strict=True)]


class BatchCache:
    """The caches of one layer, one a row, for a single pass.

    offset: (B,) int32, the position at which the new tokens of each row begin. All layers of a
    pass share it.
    """

    def __init__(self, rows: Sequence[KVCache], offset: mx.array) -> None:
        self.offset = offset
        self._rows = rows

    def attend(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        """As `KVCache.attend`, (B, H, L, head_dim), each row by its own cache."""
        attended = [
            cache.attend(q[n : n + 1], k[n : n + 1], v[n : n + 1], scale=scale)
            for n, cache in enumerate(self._rows)
        ]
        return mx.concatenate(attended)
