"""The KV caches of one sequence, of all layers, which change together."""

from __future__ import annotations

from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache


class SequenceCaches(list[KVCache]):
    """One cache a layer. Whatever changes all of them goes through its methods."""

    @property
    def length(self) -> int:
        """Tokens held."""
        return self[0].length

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(cache.nbytes for cache in self)

    def reserve(self, tokens: int, most: int = 0) -> None:
        """Allocate at least `tokens` with the next write; see `KVCache.reserve`."""
        for cache in self:
            cache.reserve(tokens, most)

    def trim(self, length: int) -> None:
        """Remove all tokens from position `length` on."""
        for cache in self:
            cache.trim(length)

    def trimmable(self, length: int) -> int:
        """Longest prefix, at most `length` tokens, that `trim` restores exactly."""
        return self[0].trimmable(length)

    def snapshot(self, most: int) -> None:
        """Keep the present length trimmable; see `KVCache.snapshot`."""
        for cache in self:
            cache.snapshot(most)

    def evaluate(self, *beside: mx.array) -> None:
        """Evaluate the caches, with arrays of the same pass."""
        mx.eval(*beside, [array for cache in self for array in cache.state])

    def copy_from(self, other: SequenceCaches, length: int) -> None:
        """Copy the first `length` tokens of another sequence's caches into these empty ones."""
        for cache, source in zip(self, other, strict=True):
            cache.restore(source.save(length), length)
            mx.eval(cache.state)  # layer by layer, which limits temporary arrays
