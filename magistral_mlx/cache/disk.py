"""The prefix cache on disk: KV caches of prompts, kept for later runs in blocks that prompts share.

A block file holds `BLOCK` tokens of all layers and is named by a hash of all tokens up to its end.
Prompts with a common prefix share its blocks, and a lookup follows the hashes of a prompt as far
as there are files. A quantized cache also has a full-precision window; the window and the rows
after the last block are in a tail file, one for each length from which decoding can resume.

Each combination of model, scheme and version has a folder of its own.
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
_THREADS = 4  # that read files


@dataclass(frozen=True)
class PrefixMatch:
    """The longest prefix of a prompt on disk: its length in tokens, and the files that hold it."""

    length: int
    blocks: Sequence[Path] = ()
    tail: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [*self.blocks, *([self.tail] if self.tail else [])]


@dataclass
class DiskPrefixCache:
    """KV caches and image features on disk for one model, scheme and version.

    All calls come from the worker thread.

    root: folder shared by all models. limit: bytes of all files below it. identity: everything
    besides the tokens that determines the arrays. problem: why nothing more is written or read, if
    so.
    """

    root: Path
    limit: int
    identity: str
    scheme: KVScheme
    problem: str | None = None
    _notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._owner = digest(f"{self.identity} {self.scheme} format {_FORMAT}".encode())
        self._hashes = BlockHashes(self._owner, self.scheme)
        self._folder = self.root / self._owner[:16]
        self._lock = threading.Lock()
        self._unreadable = False
        self._writer = Writer(self.root, self.limit, self._owner, self._give_up)
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            self._writer.close(0)
            self._give_up(
                f"Prompts cannot be kept in {self.root}: {error.strerror or error}. Answers are "
                "not affected."
            )

    def take_notes(self) -> list[str]:
        """Return the messages for the user since the last call."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes

    def _give_up(self, why: str) -> None:
        if self.problem is None:
            self.problem = why
            self._note(why)

    def _note(self, text: str) -> None:
        with self._lock:
            self._notes.append(text)

    # Reading

    def find(self, keys: TokenKeys) -> PrefixMatch:
        """Find the longest prefix of a prompt on disk.

        With a full-precision cache the last token is never part of it, since its logits must be
        computed.
        """
        return self._find(keys)

    def _find(self, keys: TokenKeys) -> PrefixMatch:
        blocks = []
        for name in self._hashes.blocks(keys[:-1]):
            if not self._is_there(self._folder / name):
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

    def _is_there(self, path: Path) -> bool:
        """Whether a file can be looked for and is there; after an error of the disk, nothing is."""
        if self._unreadable:
            return False
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._unreadable = True
            self._give_up(
                f"The prompt cache in {self.root} is off from now on: {error.strerror or error}. "
                "Answers are not affected."
            )
            return False
        return True

    def load(self, keys: TokenKeys, caches: Sequence[KVCache], least: int) -> int:
        """Load the longest prefix of a prompt into empty caches and return its length.

        Returns 0 if no more than `least` tokens can be loaded; the caches must then be discarded.
        Damaged files are removed, and a shorter prefix is tried.
        """
        while (found := self._find(keys)).length > least:
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
        """Remove a damaged file and return whether another lookup makes sense."""
        path, why = refused.path, refused.why
        if isinstance(why, FileNotFoundError):
            return True  # another process removed it
        try:
            if isinstance(why, OSError):
                raise why
            path.unlink(missing_ok=True)
        except OSError as error:
            self._note(
                f"Cannot use {path}: {error.strerror or error}. Its prompt is processed again."
            )
            return False
        self._note(f"Removed the damaged file {path}: {why}. Its prompt is processed again.")
        return True

    # Images

    def features(self, name: str) -> mx.array | None:
        """Load the image features stored under `name`, (n, D); None if there are none."""
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
        """Store the features of an image, (n, D), evaluated."""
        path = self._folder / f"image-{name}"
        if self._wanted(path) and self._writer.has_capacity:
            self._writer.put(path, {"features": HostArray.of(features)})

    # Writing

    @property
    def nbytes(self) -> int:
        """Bytes in memory that are queued for writing."""
        return self._writer.nbytes

    @property
    def has_capacity(self) -> bool:
        """Whether the write queue accepts another file now."""
        return self._writer.has_capacity

    def notify_capacity(self, callback: Callable[[], None]) -> None:
        """Call `callback`, from the writer's thread, whenever a file has been written."""
        self._writer.on_capacity = callback

    def write_some(self, keys: TokenKeys, caches: Sequence[KVCache]) -> bool:
        """Queue one missing file of the caches of these tokens; return whether one was queued.

        The caches must be evaluated.
        """
        pieces = list(self._pieces(keys, caches[0]))
        for piece in pieces:
            if self._wanted(piece.path):
                self._writer.put(piece.path, part_arrays(piece, caches))
                return True
        self._writer.used([piece.path for piece in pieces])
        return False

    def wait_for_capacity(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for capacity in the write queue; return whether it has
        some."""
        return self._writer.wait_for_capacity(timeout)

    def close(self, timeout: float) -> None:
        """Write for up to `timeout` seconds, then drop the rest of the queue."""
        self._writer.close(timeout)

    def _wanted(self, path: Path) -> bool:
        if self._writer.failed or self._writer.waits(path) or self._is_there(path):
            return False
        return not self._unreadable

    def _pieces(self, keys: TokenKeys, cache: KVCache) -> Iterator[FilePart]:
        """Yield all files of a cache of these tokens, in the order of the tokens."""
        rows = self._hashes.rows(len(keys))
        for n, name in enumerate(self._hashes.blocks(keys)):
            if (n + 1) * BLOCK <= rows:
                yield FilePart(self._folder / name, len(keys), n * BLOCK, (n + 1) * BLOCK)
        for length in cache.resumable:
            if length <= len(keys):
                rows = self._hashes.rows(length)
                path = self._folder / self._hashes.tail(keys[:length])
                yield FilePart(path, length, rows // BLOCK * BLOCK, rows, is_tail=True)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self._folder) as entries:
                return [entry.name for entry in entries]
        except OSError:
            return []
