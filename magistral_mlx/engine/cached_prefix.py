"""What is held of earlier prompts, piece by piece, and what has come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.engine.images import common


@dataclass(slots=True)
class PrefixCacheStats:
    """What has become of the prompts so far.

    prompts: looked up. hits: of which some tokens were held. tokens: of all prompts. reused: of
    which were held. read: of which came from the disk. images: whose features were looked up.
    seen: of which were held.
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
    """The caches of `keys`; `logits` are those after the first `prompt` of them."""

    keys: NDArray[np.int64]
    caches: Sequence[KVCache]
    prompt: int = 0
    logits: mx.array | None = None

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in self.caches) + (
            0 if self.logits is None else self.logits.nbytes
        )

    def reusable(self, keys: NDArray[np.int64]) -> int:
        """How many leading tokens of a prompt can be gone on from with nothing changed by it.

        All of them only where the logits after them are held.
        """
        shared = common(self.keys, keys)
        if shared == len(keys) and (self.logits is None or self.prompt != shared):
            shared -= 1
        return self.caches[0].trimmable(shared)

    def covers(self, other: CachedPrefix) -> bool:
        """Whether all that `other` is good for, but for its logits, can be had from this one."""
        length = len(other.keys)
        return common(self.keys, other.keys) == length == self.caches[0].trimmable(length)


class ActivePrefix(NamedTuple):
    """The caches of a prompt, `keyed`, that somebody goes on with."""

    keys: NDArray[np.int64]
    caches: Sequence[KVCache]


@dataclass(frozen=True, eq=False)
class CachedFeatures:
    """The features of an image, (n, D)."""

    features: mx.array

    @property
    def nbytes(self) -> int:
        return self.features.nbytes
