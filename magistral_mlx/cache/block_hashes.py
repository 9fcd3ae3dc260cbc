"""Block hashes: names of the files that hold a prompt's prefix.

The hash of a block covers all tokens up to its end, so prompts with a common prefix have the same
first hashes (the prefix caching of vLLM names its blocks so, too).
"""

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
    """File names for the caches of one owner (model and version) and scheme."""

    owner: str
    scheme: KVScheme

    def rows(self, length: int) -> int:
        """Rows of a cache of `length` tokens that blocks are cut from: the quantized ones, or
        all of a full cache."""
        return self.scheme.packed(length) if self.scheme.quantized else length

    def blocks(self, keys: TokenKeys) -> Iterator[str]:
        """Yield the name of each complete block of these tokens."""
        name = self.base(keys, 0)
        first = self._first
        for start in range(first, len(keys) - BLOCK + 1, BLOCK):
            name = digest(name.encode() + keys[start : start + BLOCK].tobytes())
            yield name

    def base(self, keys: TokenKeys, count: int) -> str:
        """Hash of the first `count` blocks and the tokens before them."""
        if count:
            return [*self.blocks(keys[: self._first + count * BLOCK])][-1]
        return digest(self.owner.encode() + keys[: self._first].tobytes())

    @property
    def _first(self) -> int:
        """Position of the first token that is part of a block."""
        return self.scheme.first if self.scheme.quantized else 0

    def tail(self, keys: TokenKeys) -> str:
        """Name of the tail file: the state of a cache of these tokens that is not in blocks."""
        base = self.base(keys, self.rows(len(keys)) // BLOCK)
        return f"{_TAIL}-{base}-{len(keys)}-{digest(keys.tobytes())}"


def tail_length(name: str) -> int:
    """Tokens of the cache that a tail file belongs to, by its name; 0 for other files."""
    parts = name.split("-")
    return int(parts[2]) if len(parts) == 4 and parts[0] == _TAIL and parts[2].isdecimal() else 0


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
