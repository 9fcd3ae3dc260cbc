"""Places that a quantized cache can be trimmed back to, long after they have left its window."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from magistral_mlx.backend import mx
from magistral_mlx.cache.scheme import KVScheme


@dataclass(frozen=True, eq=False)
class Mark:
    """The window of a cache of `length` tokens: those from `start` on, (B, H_kv, n, D) each."""

    length: int
    start: int
    keys: mx.array
    values: mx.array


class Marks:
    """The marks of one cache, in ascending order."""

    def __init__(self, scheme: KVScheme) -> None:
        self._scheme = scheme
        self._marks: list[Mark] = []

    @property
    def state(self) -> list[mx.array]:
        return [array for mark in self._marks for array in (mark.keys, mark.values)]

    @property
    def lengths(self) -> list[int]:
        return [mark.length for mark in self._marks]

    def add(self, mark: Mark, most: int) -> None:
        """Add one at the end. Beyond `most`, 3 or more, the one goes that costs least to miss:
        the closest to the one before it, never one of the last two."""
        if self._marks and self._marks[-1].length >= mark.length:
            return
        self._marks.append(mark)
        while len(self._marks) > most:
            lengths = [0, *(mark.length for mark in self._marks)]
            gaps = [after - before for before, after in pairwise(lengths[:-2])]
            del self._marks[gaps.index(min(gaps))]

    def trim(self, length: int) -> None:
        """Forget those beyond `length`."""
        self._marks = [mark for mark in self._marks if mark.length <= length]

    def covering(self, length: int) -> Mark | None:
        """One that holds all that a cache of `length` tokens has in full precision."""
        for mark in self._marks:
            if mark.length >= length and self._reaches(mark, length):
                return mark
        return None

    def longest(self, length: int) -> int:
        """The longest beginning, of `length` tokens at most, that a mark covers."""
        covered = [
            min(length, mark.length)
            for mark in self._marks
            if self._reaches(mark, min(length, mark.length))
        ]
        return max(covered, default=0)

    def _reaches(self, mark: Mark, length: int) -> bool:
        return mark.start <= self._scheme.first + self._scheme.packed(length)

    def save(self, length: int) -> dict[str, mx.array]:
        """Those up to `length`, as named arrays."""
        saved = {}
        for mark in self._marks:
            if mark.length <= length:
                saved[f"mark_{mark.length}_keys"] = mark.keys
                saved[f"mark_{mark.length}_values"] = mark.values
        return saved

    def restore(self, saved: dict[str, mx.array]) -> None:
        """Take over what `save` gave."""
        lengths = sorted(
            int(name.split("_")[1])
            for name in saved
            if name.endswith("_keys") and name.startswith("mark_")
        )
        self._marks = []
        for length in lengths:
            keys, values = saved[f"mark_{length}_keys"], saved[f"mark_{length}_values"]
            self._marks.append(Mark(length, length - keys.shape[2], keys, values))
