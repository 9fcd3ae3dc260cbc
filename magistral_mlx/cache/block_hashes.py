"""The names of files that hold a beginning of a prompt: digests of its tokens, one of another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.cache.scheme import KVScheme

BLOCK = 256  # tokens
_TAIL = "tail"

TokenKeys = NDArray[np.int64]


@dataclass(frozen=True)
class BlockHashes:
    """The names for caches of a scheme that belong to `owner`."""

    owner: str
    scheme: KVScheme

    def rows(self, length: int) -> int:
        """Rows that blocks are made of, in a cache of so many tokens."""
        return self.scheme.packed(length) if self.scheme.quantized else length

    def blocks(self, keys: TokenKeys) -> Iterator[str]:
        """The name of each whole block of these tokens."""
        name = self.base(keys, 0)
        first = self._first
        for start in range(first, len(keys) - BLOCK + 1, BLOCK):
            name = digest(name.encode() + keys[start : start + BLOCK].tobytes())
            yield name

    def base(self, keys: TokenKeys, count: int) -> str:
        """What stands for the first `count` blocks, and for the tokens before them."""
        if count:
            return [*self.blocks(keys[: self._first + count * BLOCK])][-1]
        return digest(self.owner.encode() + keys[: self._first].tobytes())

    @property
    def _first(self) -> int:
        """The token that the first row is of."""
        return self.scheme.first if self.scheme.quantized else 0

    def tail(self, keys: TokenKeys) -> str:
        """The name of what is held of these tokens beyond blocks."""
        base = self.base(keys, self.rows(len(keys)) // BLOCK)
        return f"{_TAIL}-{base}-{len(keys)}-{digest(keys.tobytes())}"


def tail_length(name: str) -> int:
    """Of how many tokens a file is the end, by its name; 0 if it is none."""
    parts = name.split("-")
    return int(parts[2]) if len(parts) == 4 and parts[0] == _TAIL and parts[2].isdecimal() else 0


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
