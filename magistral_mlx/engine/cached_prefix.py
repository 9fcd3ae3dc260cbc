"""Entries of the prefix cache: KV caches of earlier prompts and image features, and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.engine.images import common


@dataclass(slots=True)
class PrefixCacheStats:
    """Statistics of lookups.

    prompts: prompts looked up. hits: prompts of which a prefix was cached. tokens: tokens of all
    prompts. reused: tokens of cached prefixes. read: tokens loaded from disk. images: images
    looked up. seen: images whose features were cached.
    """

    prompts: int = 0
    hits: int = 0
    tokens: int = 0
    reused: int = 0
    read: int = 0
    images: int = 0
    seen: int = 0


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """KV caches of a sequence, by its token keys.

    logits: (1, vocab_size) after the first `prompt` tokens, if they are kept.
    """

    keys: NDArray[np.int64]
    caches: SequenceCaches
    prompt: int = 0
    logits: mx.array | None = None

    @property
    def nbytes(self) -> int:
        return self.caches.nbytes + (0 if self.logits is None else self.logits.nbytes)

    def reusable(self, keys: NDArray[np.int64]) -> int:
        """Number of leading tokens of a prompt that these caches can provide exactly.

        It includes the last token only if the logits after it are kept.
        """
        shared = common(self.keys, keys)
        if shared == len(keys) and (self.logits is None or self.prompt != shared):
            shared -= 1
        return self.caches.trimmable(shared)

    def covers(self, other: CachedPrefix) -> bool:
        """Whether this entry can provide every prefix that `other` can, aside from its logits."""
        length = len(other.keys)
        return common(self.keys, other.keys) == length == self.caches.trimmable(length)


class ActivePrefix(NamedTuple):
    """Token keys and KV caches of a sequence that is being generated."""

    keys: NDArray[np.int64]
    caches: SequenceCaches


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """The features of an image, (n, D)."""

    features: mx.array

    @property
    def nbytes(self) -> int:
        return self.features.nbytes
