"""What was computed before and may be needed again: caches of prompts and answers, and features.

    take    the caches that hold the longest beginning of a prompt
    put     those of a generation that has ended, its answer included

Everything lives on the worker thread and counts against one budget, which what runs has the first
claim on. What was used least recently goes first. With a disk all of it is written there as well,
when there is time, and read again where memory holds less of a prompt.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.disk import DiskPrefixCache
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.engine.cached_prefix import (
    ActivePrefix,
    CachedFeatures,
    CachedPrefix,
    PrefixCacheStats,
)
from magistral_mlx.engine.images import ImageKey, token_keys
from magistral_mlx.engine.prefill import ComputedPrefix

__all__ = ["ActivePrefix", "PrefixCache", "PrefixCacheStats"]

_LEAST = 8  # tokens; fewer are not worth the trouble
_CLOSE_TIMEOUT = 20.0  # seconds that closing waits for the disk
_WORTH_READING = 64  # tokens that the disk must have beyond what memory holds


class PrefixCache:
    """Caches and features that are kept under a budget.

    counts: for statistics; like `nbytes` it may be read from any thread.
    """

    def __init__(
        self,
        budget: int,
        make_caches: Callable[[], Sequence[KVCache]],
        image_token: int,
        disk: DiskPrefixCache | None = None,
        load_tower: Callable[[], None] | None = None,
    ) -> None:
        """Nothing is held yet.

        Args:
            budget: bytes that what is held and the caches of what runs may take together.
            make_caches: empty caches of the scheme that all of them have.
            image_token: the id that stands for a part of an image.
            disk: where it is kept for later runs; `close` finishes writing.
            load_tower: has the vision tower in memory, for an image that was not seen before.
        """
        self.budget = budget
        self.counts = PrefixCacheStats()
        self._make_caches = make_caches
        self._image_token = image_token
        self._kept: OrderedDict[object, CachedPrefix | CachedFeatures] = (
            OrderedDict()
        )  # the oldest use first
        self._active_bytes = 0
        self._disk, self._load_tower = disk, load_tower
        self._unwritten: deque[CachedPrefix] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes that are held, the caches of what runs not among them."""
        return sum(kept.nbytes for kept in list(self._kept.values()))

    # Caches

    def longest(self, keys: NDArray[np.int64]) -> int:
        """How many leading tokens of a prompt with these `keyed` tokens are held."""
        held, length = self._longest(keys)
        return 0 if held is None else length

    def take(
        self,
        tokens: NDArray[np.int32],
        images: Sequence[ImageKey] = (),
        active_bytes: int = 0,
        in_use: Sequence[ActivePrefix] = (),
    ) -> ComputedPrefix | None:
        """The caches that hold the longest beginning of a prompt, for `generate` to go on from.

        They belong to the caller, who gives them back by `put`. Where much more is held than what
        is shared, its owner keeps it and the caller gets a copy, if there is room for both.

        Args:
            tokens: (L,) the whole prompt; images: those in it, in order.
            running: bytes of the caches that are in use from now on, this prompt's among them.
            in_use: caches that others go on with, to be copied from where they hold more.
        """
        self._active_bytes = active_bytes
        keys = token_keys(tokens, images, self._image_token)
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
        caches: Sequence[KVCache],
        prefilled: ComputedPrefix | None = None,
        active_bytes: int = 0,
    ) -> None:
        """Keep the caches of a generation that has ended, wherever it ended.

        Args:
            tokens: (L,) prompt and answer, as far as they are known; the caches hold the
                beginning of them, and perhaps a token more.
            prefilled: the generation's own, for the logits after its prompt.
            running: bytes of the caches that are still in use.
        """
        self._active_bytes = active_bytes
        length = min(len(tokens), caches[0].length)
        if length < _LEAST:
            return
        for cache in caches:
            cache.trim(length)
        mx.eval([array for cache in caches for array in cache.state])
        keys = token_keys(tokens[:length], images, self._image_token)
        held = CachedPrefix(keys, caches)
        if prefilled is not None and prefilled.length <= length:
            held = CachedPrefix(keys, caches, prefilled.length, prefilled.logits)
        for name, other in list(self._kept.items()):
            if isinstance(other, CachedPrefix) and held.covers(other):
                del self._kept[name]
        self._kept[held] = held
        self._evict()
        if self._disk is not None:
            self._unwritten.append(held)
            while self.write_some():
                pass

    def _longest(self, keys: NDArray[np.int64]) -> tuple[CachedPrefix | None, int]:
        best, most = None, _LEAST - 1
        for held in reversed(self._kept.values()):
            if isinstance(held, CachedPrefix) and (length := held.reusable(keys)) > most:
                best, most = held, length
        return best, most

    def _hand_out(self, held: CachedPrefix, length: int, *, whole: bool) -> ComputedPrefix:
        """The caches themselves, or a copy of what is shared."""
        logits = held.logits if whole else None
        if held not in self._kept:  # somebody else's
            return ComputedPrefix(self._copy(held.caches, length), length)
        spare = len(held.keys) - length
        if spare > length // 8 and self.nbytes + self._active_bytes <= self.budget:
            self._kept.move_to_end(held)
            return ComputedPrefix(self._copy(held.caches, length), length, logits)
        del self._kept[held]
        return ComputedPrefix(held.caches, length, logits)

    def _copy(self, caches: Sequence[KVCache], length: int) -> Sequence[KVCache]:
        copies = self._make_caches()
        for cache, copy in zip(caches, copies, strict=True):
            copy.restore(cache.save(length), length)
            mx.eval(copy.state)  # layer by layer, or both would be in memory twice
        return copies

    # Features

    def features(self, image: ImageKey) -> mx.array | None:
        """The features of an image that was seen before, (n, D)."""
        self.counts.images += 1
        seen = self._kept.get(image)
        if not isinstance(seen, CachedFeatures):
            features = None if self._disk is None else self._disk.features(image.name)
            if features is None:
                return None
            seen = self._kept[image] = CachedFeatures(features)
        self.counts.seen += 1
        self._kept.move_to_end(image)
        self._evict()
        return seen.features

    def get_ready(self) -> None:
        """Have the tower in memory, as an image is about to be looked at."""
        if self._load_tower is not None:
            self._load_tower()

    def keep_features(self, image: ImageKey, features: mx.array) -> None:
        """Keep the features of an image, (n, D), evaluated."""
        self._kept[image] = CachedFeatures(features)
        self._evict()
        if self._disk is not None:
            self._disk.keep_features(image.name, features)

    # The disk

    def _from_disk(self, keys: NDArray[np.int64], held: int) -> ComputedPrefix | None:
        """What the disk has, if it is clearly more than is `held`."""
        if self._disk is None or self._disk.find(keys).length < held + _WORTH_READING:
            return None
        self._evict()
        caches = self._make_caches()
        length = self._disk.load(keys, caches, held)
        self.counts.read += length
        return ComputedPrefix(caches, length) if length else None

    def write_some(self) -> bool:
        """Hand something to the disk that it does not have yet -> whether to go on with that.

        It does not wait: where the disk is busy nothing happens.
        """
        if self._disk is None or not self._disk.has_capacity:
            return False
        while self._unwritten:
            held = self._unwritten[0]
            if held in self._kept and self._disk.write_some(held.keys, held.caches):
                return True
            self._unwritten.popleft()
        return False

    def take_notes(self) -> list[str]:
        """What a user should know of the disk, once."""
        return [] if self._disk is None else self._disk.take_notes()

    def close(self) -> None:
        """Give up everything once it has been written, as far as that takes some seconds."""
        if self._disk is not None:
            end = time.monotonic() + _CLOSE_TIMEOUT
            while self.write_some() or (
                self._unwritten and self._disk.wait_for_capacity(end - time.monotonic())
            ):
                pass
            self._disk.close(end - time.monotonic())
        self.release()

    # Room

    def evict_for(self, active_bytes: int) -> None:
        """Give up what stands in the way of what runs.

        Args:
            running: bytes that all caches in use take, or are about to.
        """
        self._active_bytes = active_bytes
        self._evict()

    def release(self) -> None:
        """Give up everything in memory."""
        self._kept.clear()
        self._unwritten.clear()

    def _evict(self) -> None:
        room = self.budget - self._active_bytes
        nbytes = self.nbytes
        while self._kept and nbytes > room:
            _, kept = self._kept.popitem(last=False)
            nbytes -= kept.nbytes
