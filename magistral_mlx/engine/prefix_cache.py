"""The prefix cache: KV caches of earlier prompts and outputs, and features of earlier images.

    take    the caches with the longest prefix of a prompt
    put     the caches of a generation that has ended, including its output

All calls come from the worker thread, except where noted. Entries share one memory budget with the
caches in use, which take precedence; the least recently used entries are evicted. With a disk
cache, entries are also written to disk in idle time, and loaded from there if memory holds less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.disk import DiskPrefixCache
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.engine.cached_prefix import (
    ActivePrefix,
    CachedFeatures,
    CachedPrefix,
    PrefixCacheStats,
)
from magistral_mlx.engine.images import ImageKey, token_keys
from magistral_mlx.engine.prefill import ComputedPrefix

__all__ = ["ActivePrefix", "PrefixCache", "PrefixCacheStats"]

_LEAST = 8  # tokens; shorter prefixes are not reused
_CLOSE_TIMEOUT = 20.0  # seconds that closing waits for the disk
_WORTH_READING = 64  # tokens more than memory holds for which the disk is read


class PrefixCache:
    """KV caches and image features within a memory budget.

    counts: statistics; like `nbytes` they may be read from any thread.
    """

    def __init__(
        self,
        budget: int,
        make_caches: Callable[[], SequenceCaches],
        image_token: int,
        disk: DiskPrefixCache | None = None,
        load_tower: Callable[[], None] | None = None,
    ) -> None:
        """Make an empty prefix cache.

        Args:
            budget: bytes for all entries together with the caches in use.
            make_caches: makes empty caches of the one scheme in use.
            image_token: id of image tokens.
            disk: storage for later runs; `close` finishes writing.
            load_tower: loads the vision tower, called before an uncached image is encoded.
        """
        self.budget = budget
        self.counts = PrefixCacheStats()
        self._make_caches = make_caches
        self._image_token = image_token
        # The oldest use first. Other threads read its values, which an OrderedDict may refuse.
        self._kept: dict[object, CachedPrefix | CachedFeatures] = {}
        self._active_bytes = 0
        self._disk, self._load_tower = disk, load_tower
        self._unwritten: dict[object, CachedPrefix] = {}  # some of `_kept`, the oldest first

    @property
    def nbytes(self) -> int:
        """Bytes of all entries, without the caches in use."""
        return sum(kept.nbytes for kept in list(self._kept.values()))

    # Caches

    def longest(self, keys: NDArray[np.int64]) -> int:
        """Number of leading tokens of a prompt, by its token keys, that are cached."""
        held, length = self._longest(keys)
        return 0 if held is None else length

    def take(
        self,
        tokens: NDArray[np.int32],
        images: Sequence[ImageKey] = (),
        active_bytes: int = 0,
        in_use: Sequence[ActivePrefix] = (),
        adapter: int = 0,
    ) -> ComputedPrefix | None:
        """Take the caches with the longest prefix of a prompt, for `generate` to start from.

        They belong to the caller, who returns them with `put`. If an entry is much longer than
        the common prefix, the caller gets a copy and the entry stays, if memory allows both.

        Args:
            tokens: (L,) the whole prompt.
            images: keys of the images in it, in order.
            active_bytes: bytes of the caches in use from now on, including this prompt's.
            in_use: caches of sequences in progress, copied if they have a longer prefix.
            adapter: fingerprint of the prompt's adapter, as in `token_keys`.
        """
        self._active_bytes = active_bytes
        keys = token_keys(tokens, images, self._image_token, adapter)
        self.counts.prompts += 1
        self.counts.tokens += len(keys)
        held, length = self._longest(keys)
        for other in in_use:
            shared = CachedPrefix(other.keys, other.caches)
            if (more := shared.reusable(keys)) > length:
                held, length = shared, more
        prefilled = self._from_disk(keys, length)
        if prefilled is None and held is not None:
            prefilled = self._hand_out(held, length, whole=length == len(keys))
        if prefilled is not None:
            self.counts.hits += 1
            self.counts.reused += prefilled.length
        self._evict()
        return prefilled

    def put(
        self,
        tokens: NDArray[np.int32],
        images: Sequence[ImageKey],
        caches: SequenceCaches,
        prefilled: ComputedPrefix | None = None,
        active_bytes: int = 0,
        adapter: int = 0,
    ) -> None:
        """Add the caches of a generation that has ended, at whatever point it ended.

        Args:
            tokens: (L,) prompt and output so far; the caches hold a prefix of them, and perhaps
                one token more.
            prefilled: the generation's own prefix, for the logits after its prompt.
            active_bytes: bytes of the caches that are still in use.
            adapter: fingerprint of the generation's adapter, as in `token_keys`.
        """
        self._active_bytes = active_bytes
        length = min(len(tokens), caches.length)
        if length < _LEAST:
            return
        caches.trim(length)
        caches.evaluate()
        keys = token_keys(tokens[:length], images, self._image_token, adapter)
        held = CachedPrefix(keys, caches)
        if prefilled is not None and prefilled.length <= length:
            held = CachedPrefix(keys, caches, prefilled.length, prefilled.logits)
        for name, other in list(self._kept.items()):
            if isinstance(other, CachedPrefix) and held.covers(other):
                self._remove(name)
        self._kept[held] = held
        if self._disk is not None:
            self._unwritten[held] = held
        self._evict()
        while self.write_some():
            pass

    def _longest(self, keys: NDArray[np.int64]) -> tuple[CachedPrefix | None, int]:
        best, most = None, _LEAST - 1
        for held in reversed(self._kept.values()):
            if isinstance(held, CachedPrefix) and (length := held.reusable(keys)) > most:
                best, most = held, length
        return best, most

    def _hand_out(self, held: CachedPrefix, length: int, *, whole: bool) -> ComputedPrefix:
        """Return the entry's own caches, or a copy of the common prefix."""
        logits = held.logits if whole else None
        if held not in self._kept:  # in use by a sequence in progress
            return ComputedPrefix(self._copy(held.caches, length), length)
        spare = len(held.keys) - length
        if spare > length // 8 and self.nbytes + self._active_bytes <= self.budget:
            self._kept[held] = self._kept.pop(held)
            return ComputedPrefix(self._copy(held.caches, length), length, logits)
        self._remove(held)
        return ComputedPrefix(held.caches, length, logits)

    def _copy(self, caches: SequenceCaches, length: int) -> SequenceCaches:
        copies = self._make_caches()
        copies.copy_from(caches, length)
        return copies

    # Features

    def features(self, image: ImageKey) -> mx.array | None:
        """Return the cached features of an image, (n, D), or None."""
        self.counts.images += 1
        seen = self._kept.get(image)
        if not isinstance(seen, CachedFeatures):
            features = None if self._disk is None else self._disk.features(image.name)
            if features is None:
                return None
            seen = self._kept[image] = CachedFeatures(features)
        self.counts.seen += 1
        self._kept[image] = self._kept.pop(image)
        self._evict()
        return seen.features

    def get_ready(self) -> None:
        """Load the vision tower before an image is encoded."""
        if self._load_tower is not None:
            self._load_tower()

    def keep_features(self, image: ImageKey, features: mx.array) -> None:
        """Add the features of an image, (n, D), evaluated."""
        self._kept[image] = CachedFeatures(features)
        self._evict()
        if self._disk is not None:
            self._disk.keep_features(image.name, features)

    # The disk

    def _from_disk(self, keys: NDArray[np.int64], held: int) -> ComputedPrefix | None:
        """Load a prefix from disk if it is clearly longer than `held` tokens."""
        if self._disk is None or self._disk.find(keys).length < held + _WORTH_READING:
            return None
        self._evict()
        caches = self._make_caches()
        length = self._disk.load(keys, caches, held)
        self.counts.read += length
        return ComputedPrefix(caches, length) if length else None

    def write_some(self) -> bool:
        """Queue one file for the disk and return whether there may be more.

        It never waits: while the write queue is full it does nothing.
        """
        if self._disk is None:
            return False
        if self._disk.problem is not None:
            self._unwritten.clear()
        while self._unwritten and self._disk.has_capacity:
            held = next(iter(self._unwritten.values()))
            if self._disk.write_some(held.keys, held.caches):
                return True
            del self._unwritten[held]
        return False

    @property
    def disk_problem(self) -> str | None:
        """Why nothing more is written to disk; None where it is, or there is no disk cache."""
        return None if self._disk is None else self._disk.problem

    def take_notes(self) -> list[str]:
        """Return the disk cache's messages for the user since the last call."""
        return [] if self._disk is None else self._disk.take_notes()

    def close(self) -> None:
        """Write what is not on disk yet, within some seconds, and release everything."""
        if self._disk is not None:
            end = time.monotonic() + _CLOSE_TIMEOUT
            while self.write_some() or (
                self._unwritten and self._disk.wait_for_capacity(end - time.monotonic())
            ):
                pass
            self._disk.close(end - time.monotonic())
        self.release()

    # Eviction

    def evict_for(self, active_bytes: int) -> None:
        """Evict entries until the caches in use fit into the budget.

        Args:
            active_bytes: bytes that all caches in use take, or are about to.
        """
        self._active_bytes = active_bytes
        self._evict()

    def release(self) -> None:
        """Drop all entries in memory."""
        self._kept.clear()
        self._unwritten.clear()

    def _evict(self) -> None:
        allowed = self.budget - self._active_bytes
        nbytes = self.nbytes
        while self._kept and nbytes > allowed:
            nbytes -= self._remove(next(iter(self._kept))).nbytes

    def _remove(self, name: object) -> CachedPrefix | CachedFeatures:
        self._unwritten.pop(name, None)
        return self._kept.pop(name)
