"""The prefix cache on disk over ranks: each keeps its part of the caches in files of its own.

Rank 0 decides what is written and read. A prefix is read as far as all ranks have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magistral_mlx.cache.block_hashes import TokenKeys
from magistral_mlx.cache.disk import DiskPrefixCache, PrefixMatch
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.distributed.leader import Leader
from magistral_mlx.distributed.model import ToldCaches

_ROUNDS = 4  # in which all ranks find a length that each has
_WAIT = 1.0  # seconds that a rank waits for its disk before it skips a file


class LeadingDisk(DiskPrefixCache):
    """Rank 0's disk cache, which tells the other ranks what to write and to read."""

    def __init__(
        self, leader: Leader, model: int, root: Path, limit: int, identity: str, scheme: KVScheme
    ) -> None:
        super().__init__(root, limit, identity, scheme)
        self._leader, self._model = leader, model
        leader.tell("open disk", model, str(root), limit, identity, scheme.name)

    def find(self, keys: TokenKeys) -> PrefixMatch:
        """Find the longest prefix of a prompt that all ranks have on disk."""
        found = self._find(keys)
        for _ in range(_ROUNDS):
            if not found.length:
                break
            lengths = self._leader.ask("find", self._model, prefix(keys, found.length, self.scheme))
            if min(lengths) == found.length:
                return found
            found = self._find(np.array(prefix(keys, min(lengths), self.scheme), np.int64))
        return PrefixMatch(0)

    def load(self, keys: TokenKeys, caches: Sequence[KVCache], least: int) -> int:
        """Load the longest prefix that all ranks have; see `DiskPrefixCache.load`."""
        assert isinstance(caches, ToldCaches), "caches of the same model"
        length = self.find(keys).length
        if length <= least:
            return 0
        wanted = prefix(keys, length, self.scheme)
        self._leader.tell("read", self._model, caches.number, wanted)
        loaded = super().load(np.array(wanted, np.int64), caches, least)
        return length if {loaded, *self._leader.wait()} == {length} else 0

    def write_some(self, keys: TokenKeys, caches: Sequence[KVCache]) -> bool:
        """Queue one missing file of these caches on each rank; see `DiskPrefixCache.write_some`."""
        assert isinstance(caches, ToldCaches), "caches of the same model"
        if self._leader.error is not None:
            return False
        self._leader.tell("write", self._model, caches.number, keys.tolist())
        return super().write_some(keys, caches)

    def close(self, timeout: float) -> None:
        """Write for up to `timeout` seconds, on all ranks at once, then drop the rest."""
        if self._leader.error is None:
            self._leader.tell("close disk", self._model, timeout)
        super().close(timeout)


def prefix(keys: TokenKeys, length: int, scheme: KVScheme) -> list[int]:
    """The keys of a prompt of which `DiskPrefixCache` finds `length` tokens at most.

    A full-precision cache leaves the last token out.
    """
    return keys[: length + (not scheme.quantized)].tolist()


class FollowingDisks:
    """The disk caches of a rank beside rank 0, by the numbers of their models."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._disks: dict[int, DiskPrefixCache] = {}

    def open(self, model: int, root: str, limit: int, identity: str, scheme: str) -> None:
        """Open the folder that rank 0 named, on this machine."""
        own = f"{identity} rank {self._rank}"
        self._disks[model] = DiskPrefixCache(Path(root), limit, own, KVScheme.parse(scheme))

    def find(self, model: int, keys: list[int]) -> int:
        """Tokens of a prompt that are on this machine's disk."""
        return self._disks[model].find(np.array(keys, np.int64)).length

    def read(self, model: int, caches: Sequence[KVCache], keys: list[int]) -> int:
        """Load a prefix into empty caches -> its length."""
        return self._disks[model].load(np.array(keys, np.int64), caches, 0)

    def write(self, model: int, caches: Sequence[KVCache], keys: list[int]) -> None:
        """Queue a missing file, unless the disk is slower than the others."""
        disk: Any = self._disks[model]
        if disk.wait_for_capacity(_WAIT):
            disk.write_some(np.array(keys, np.int64), caches)

    def close(self, model: int, timeout: float) -> None:
        """Write for up to `timeout` seconds, then drop the rest."""
        if disk := self._disks.pop(model, None):
            disk.close(timeout)
