"""Beginnings of prompts on disk, for later runs: in blocks that prompts share.

A block holds `BLOCK` tokens of all layers. Its name is a digest of all tokens up to its end, so
two prompts that begin alike have their first blocks in common, and the longest beginning is found
by looking for one name after the other. A quantized cache has more than rows, its window: that, and
the rows after the last block, stand in an end of its own, at each length that one may go on from.

A folder stands for a model, a scheme and a version: what belongs to another is never looked at.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path

from magistral_mlx.backend import mx
from magistral_mlx.cache.block_hashes import BLOCK, BlockHashes, TokenKeys, digest, tail_length
from magistral_mlx.cache.blockfile import BlockFile, HostArray
from magistral_mlx.cache.diskparts import (
    FilePart,
    UnusableFile,
    join_parts,
    part_arrays,
    read_layer,
    unusable_if_damaged,
)
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.cache.writer import Writer

_FORMAT = 2
_THREADS = 4  # that read


@dataclass(frozen=True)
class PrefixMatch:
    """What the disk has of a prompt: its first `length` tokens."""

    length: int
    blocks: Sequence[Path] = ()
    end: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [*self.blocks, *([self.end] if self.end else [])]


@dataclass
class DiskPrefixCache:
    """What is kept below a folder for one model, scheme and version. Lives on the worker thread.

    root: shared by all models. limit: bytes of all files below it. identity: everything that the
    arrays depend on but for the tokens.
    """

    root: Path
    limit: int
    identity: str
    scheme: KVScheme
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._owner = digest(f"{self.identity} {self.scheme} format {_FORMAT}".encode())
        self._hashes = BlockHashes(self._owner, self.scheme)
        self._folder = self.root / self._owner[:16]
        self._lock = threading.Lock()
        self._writer = Writer(self.root, self.limit, self._owner, self._note)
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._writer.close(0)
            self._note(
                f"Prompts cannot be kept in {self.root}: {error.strerror or error}. Answers are "
                "not affected."
            )

    def take_notes(self) -> list[str]:
        """What a user should know of, once."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes

    def _note(self, text: str) -> None:
        with self._lock:
            self._notes.append(text)

    # Reading

    def find(self, keys: TokenKeys) -> PrefixMatch:
        """The longest beginning of a prompt that is here.

        In a full cache that is never its last token, without which it cannot go on.
        """
        blocks = []
        for name in self._hashes.blocks(keys[:-1]):
            if not (self._folder / name).is_file():
                break
            blocks.append(self._folder / name)
        if not self.scheme.quantized:
            return PrefixMatch(len(blocks) * BLOCK, blocks)
        there = {name: tail_length(name) for name in self._names()}
        for length in sorted(set(there.values()), reverse=True):
            count = self._hashes.rows(length) // BLOCK
            if 0 < length <= len(keys) and count <= len(blocks):
                name = self._hashes.tail(keys[:length])
                if name in there:
                    return PrefixMatch(length, blocks[:count], self._folder / name)
        return PrefixMatch(0)

    def load(self, keys: TokenKeys, caches: Sequence[KVCache], least: int) -> int:
        """Fill empty caches with the longest beginning of a prompt -> its length.

        It is 0, and the caches are of no use, if there are not more than `least` tokens.
        Damaged files are removed, and what is left counts.
        """
        while (found := self.find(keys)).length > least:
            try:
                self._read(found, caches)
            except UnusableFile as refused:
                if not self._remove(refused):
                    return 0
                for cache in caches:
                    cache.trim(0)
            else:
                self._writer.used(found.files)
                return found.length
        return 0

    def _read(self, found: PrefixMatch, caches: Sequence[KVCache]) -> None:
        """Raises UnusableFile for a file that cannot be used."""
        with ThreadPoolExecutor(_THREADS) as pool:
            files = list(pool.map(self._open, found.files))
            for n, cache in enumerate(caches):
                parts = list(pool.map(read_layer, files, repeat(n)))
                cache.restore(join_parts(parts), found.length)
                mx.eval(cache.state)  # layer by layer, or all would be in memory twice

    def _open(self, path: Path) -> BlockFile:
        with unusable_if_damaged(path):
            return BlockFile(path, self._owner)

    def _remove(self, refused: UnusableFile) -> bool:
        """Remove a file that is damaged -> whether it makes sense to look again."""
        path, why = refused.path, refused.why
        if isinstance(why, FileNotFoundError):
            return True  # another process was faster
        try:
            if isinstance(why, OSError):
                raise why
            path.unlink(missing_ok=True)
        except OSError as error:
            self._note(f"{path} is of no use: {error.strerror or error}. Its prompt is read anew.")
            return False
        self._note(f"{path} was of no use and has been removed: {why}. Its prompt is read anew.")
        return True

    # Images

    def features(self, name: str) -> mx.array | None:
        """What `keep_features` kept under that name."""
        path = self._folder / f"image-{name}"
        try:
            with unusable_if_damaged(path):
                (features,) = BlockFile(path, self._owner).read(["features"])
        except UnusableFile as refused:
            self._remove(refused)
            return None
        self._writer.used([path])
        return features.to_device()

    def keep_features(self, name: str, features: mx.array) -> None:
        """Keep the features of an image, (n, D), evaluated."""
        path = self._folder / f"image-{name}"
        if self._wanted(path) and self._writer.has_capacity:
            self._writer.put(path, {"features": HostArray.of(features)})

    # Writing

    @property
    def nbytes(self) -> int:
        """Bytes in memory that wait to be written."""
        return self._writer.nbytes

    @property
    def has_capacity(self) -> bool:
        """Whether more can be written now."""
        return self._writer.has_capacity

    def notify_capacity(self, call: Callable[[], None]) -> None:
        """Have `call` called, from another thread, whenever something has been written."""
        self._writer.on_capacity = call

    def write_some(self, keys: TokenKeys, caches: Sequence[KVCache]) -> bool:
        """Hand one file of what caches hold of these tokens to the writer -> whether there is more.

        The caches are evaluated.
        """
        pieces = list(self._pieces(keys, caches[0]))
        for piece in pieces:
            if self._wanted(piece.path):
                self._writer.put(piece.path, part_arrays(piece, caches))
                return True
        self._writer.used([piece.path for piece in pieces])
        return False

    def wait_for_capacity(self, timeout: float) -> bool:
        """Wait until more can be written -> whether it can, within so many seconds."""
        return self._writer.wait_for_capacity(timeout)

    def close(self, timeout: float) -> None:
        """Finish writing within so many seconds, and drop the rest."""
        self._writer.close(timeout)

    def _wanted(self, path: Path) -> bool:
        return not (self._writer.failed or self._writer.waits(path) or path.exists())

    def _pieces(self, keys: TokenKeys, cache: KVCache) -> Iterator[FilePart]:
        """All files that hold what a cache has of these tokens, in the order of their tokens."""
        rows = self._hashes.rows(len(keys))
        for n, name in enumerate(self._hashes.blocks(keys)):
            if (n + 1) * BLOCK <= rows:
                yield FilePart(self._folder / name, len(keys), n * BLOCK, (n + 1) * BLOCK)
        for length in cache.resumable:
            if length <= len(keys):
                rows = self._hashes.rows(length)
                path = self._folder / self._hashes.tail(keys[:length])
                yield FilePart(path, length, rows // BLOCK * BLOCK, rows, is_end=True)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._folder) as entries:
                return [entry.name for entry in entries]
        except OSError:
            return []
