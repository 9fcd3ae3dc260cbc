"""A file that is still arriving, in a form that survives any interruption.

The bytes go to `NAME.TAG.incomplete`, each segment at its own offset. Beside it,
`NAME.TAG.parts` holds the segment size and, for each segment, how many of its bytes are there:
little-endian 64-bit numbers, written after the bytes that they count. A process killed at any
moment leaves a pair that can be continued.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from pathlib import Path
from types import TracebackType

SEGMENT = 16 * 2**20
_NUMBER = struct.Struct("<Q")
_READ = 4 * 2**20


class Partial:
    """The open pair of files of one download. Segments may be written from several threads."""

    def __init__(self, target: Path, size: int, etag: str, *, whole: bool = False) -> None:
        """Continue what is there for `target`, or begin it. `size` is that of the whole file.

        `whole` begins it as one segment, for a server that sends no parts.
        """
        self.size = size
        self._target = target
        self._etag = etag
        self._data, self._table = partial_paths(target, etag)
        self._lock = threading.Lock()
        self._closed = False
        self._fd = os.open(self._data, os.O_RDWR | os.O_CREAT, 0o644)
        self._table_fd = os.open(self._table, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if whole or not self._read_table():
                self._begin(size if whole else SEGMENT)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files, keeping what they hold. Writing to it has no effect from now on."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._fd)
                os.close(self._table_fd)

    @property
    def whole(self) -> bool:
        """Whether the file is one segment, so that it is fetched by one plain request."""
        return self._segment >= self.size

    @property
    def received(self) -> int:
        """Bytes that are here."""
        with self._lock:
            return sum(self._done)

    def pending(self) -> list[int]:
        """The segments that lack bytes."""
        return [i for i in range(len(self._done)) if self._done[i] < self._length(i)]

    def span(self, index: int) -> tuple[int, int]:
        """First byte that segment `index` lacks, and the byte after its last."""
        start = index * self._segment
        return start + self._done[index], start + self._length(index)

    def write(self, index: int, piece: bytes) -> None:
        """Append `piece` to segment `index`; nothing once closed. Raises the disk's `OSError`."""
        with self._lock:
            if self._closed:
                return
            offset, end = self.span(index)
            view = memoryview(piece)[: end - offset]
            length = len(view)
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
            self._count(index, self._done[index] + length)

    def clear(self, index: int) -> None:
        """Forget what segment `index` holds."""
        with self._lock:
            if not self._closed:
                self._count(index, 0)

    def finish(self) -> bool:
        """Check the content against the tag and give the file its name; False if damaged.

        A damaged file is deleted: there is no telling which of its bytes are wrong.
        """
        os.ftruncate(self._fd, self.size)
        intact = self._matches_etag()
        if intact:
            os.fsync(self._fd)
            os.replace(self._data, self._target)
        else:
            self._data.unlink()
        self._table.unlink(missing_ok=True)
        return intact

    def _begin(self, segment: int) -> None:
        """Throw away what is there and begin with segments of `segment` bytes."""
        self._segment = max(segment, 1)
        self._done = [0] * -(-self.size // self._segment)
        os.ftruncate(self._fd, 0)
        os.ftruncate(self._table_fd, 0)
        numbers = [self._segment, *self._done]
        os.pwrite(self._table_fd, b"".join(_NUMBER.pack(number) for number in numbers), 0)

    def _count(self, index: int, done: int) -> None:
        self._done[index] = done
        os.pwrite(self._table_fd, _NUMBER.pack(done), _NUMBER.size * (1 + index))

    def _read_table(self) -> bool:
        """Take over the table on disk. False where there is none that fits this file."""
        content = os.pread(self._table_fd, os.fstat(self._table_fd).st_size, 0)
        if len(content) % _NUMBER.size or len(content) < _NUMBER.size:
            return False
        self._segment, *self._done = (number for (number,) in _NUMBER.iter_unpack(content))
        if self._segment < 1 or len(self._done) != -(-self.size // self._segment):
            return False
        if any(done > self._length(i) for i, done in enumerate(self._done)):
            return False
        ends = [i * self._segment + done for i, done in enumerate(self._done) if done]
        return max(ends, default=0) <= os.fstat(self._fd).st_size

    def _length(self, index: int) -> int:
        return min(self._segment, self.size - index * self._segment)

    def _matches_etag(self) -> bool:
        """Compare with SHA-256 or git's blob hash; other kinds of tag cannot be checked."""
        if len(self._etag) == 64:
            digest = hashlib.sha256()
        elif len(self._etag) == 40:
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        else:
            return True
        offset = 0
        while piece := os.pread(self._fd, _READ, offset):
            digest.update(piece)
            offset += len(piece)
        return digest.hexdigest() == self._etag


def partial_paths(target: Path, etag: str) -> tuple[Path, Path]:
    """Return the paths of the bytes and the table of an unfinished `target`."""
    stem = target.name if target.name == etag else f"{target.name}.{etag[:12]}"
    return target.with_name(f"{stem}.incomplete"), target.with_name(f"{stem}.parts")


def bytes_on_disk(target: Path, etag: str) -> int:
    """Bytes that an interrupted download of `target` already occupies."""
    data, _ = partial_paths(target, etag)
    try:
        return data.stat().st_blocks * 512
    except OSError:
        return 0
