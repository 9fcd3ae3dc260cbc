"""Snapshots of a quantized cache's window, to which the cache can be trimmed back later."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from magistral_mlx.backend import mx
from magistral_mlx.cache.scheme import KVScheme


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The window of a cache of `length` tokens: keys and values from token `start` on,
    (B, H_kv, n, D) each."""

    length: int
    start: int
    keys: mx.array
    values: mx.array


class Snapshots:
    """The snapshots of one cache, in ascending order."""

    def __init__(self, scheme: KVScheme) -> None:
        self._scheme = scheme
        self._snapshots: list[Snapshot] = []

    @property
    def state(self) -> list[mx.array]:
        return [array for snapshot in self._snapshots for array in (snapshot.keys, snapshot.values)]

    @property
    def lengths(self) -> list[int]:
        return [snapshot.length for snapshot in self._snapshots]

    def add(self, snapshot: Snapshot, most: int) -> None:
        """Append a snapshot. Beyond `most` (3 or more) the snapshot closest to its predecessor is
        dropped, never one of the last two."""
        if self._snapshots and self._snapshots[-1].length >= snapshot.length:
            return
        self._snapshots.append(snapshot)
        while len(self._snapshots) > most:
            lengths = [0, *(snapshot.length for snapshot in self._snapshots)]
            gaps = [after - before for before, after in pairwise(lengths[:-2])]
            del self._snapshots[gaps.index(min(gaps))]

    def trim(self, length: int) -> None:
        """Drop snapshots beyond `length`."""
        self._snapshots = [snapshot for snapshot in self._snapshots if snapshot.length <= length]

    def covering(self, length: int) -> Snapshot | None:
        """Return a snapshot with all full-precision tokens of a cache of `length` tokens."""
        for snapshot in self._snapshots:
            if snapshot.length >= length and self._reaches(snapshot, length):
                return snapshot
        return None

    def longest(self, length: int) -> int:
        """Longest prefix, at most `length` tokens, that a snapshot covers."""
        covered = [
            min(length, snapshot.length)
            for snapshot in self._snapshots
            if self._reaches(snapshot, min(length, snapshot.length))
        ]
        return max(covered, default=0)

    def _reaches(self, snapshot: Snapshot, length: int) -> bool:
        return snapshot.start <= self._scheme.first + self._scheme.packed(length)

    def save(self, length: int) -> dict[str, mx.array]:
        """Return the snapshots up to `length` as named arrays."""
        saved = {}
        for snapshot in self._snapshots:
            if snapshot.length <= length:
                saved[f"snapshot_{snapshot.length}_keys"] = snapshot.keys
                saved[f"snapshot_{snapshot.length}_values"] = snapshot.values
        return saved

    def restore(self, saved: dict[str, mx.array]) -> None:
        """Restore the arrays that `save` returned."""
        lengths = sorted(
            int(name.split("_")[1])
            for name in saved
            if name.endswith("_keys") and name.startswith("snapshot_")
        )
        self._snapshots = []
        for length in lengths:
            keys, values = saved[f"snapshot_{length}_keys"], saved[f"snapshot_{length}_values"]
            self._snapshots.append(Snapshot(length, length - keys.shape[2], keys, values))
