"""Background writing of cache files to a folder that several processes share, within a limit."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from magistral_mlx.cache.blockfile import UNFINISHED, HostArray, write

_PENDING = 128 << 20  # bytes in the queue from which no more are accepted
_ABANDONED = 3600.0  # seconds after which an unfinished file may be removed
# Names of the cache's folders and files; what else there is below the folder is the user's.
_FOLDER = re.compile("[0-9a-f]{16}")
_FILE = re.compile(
    "([0-9a-f]{32}|tail-[0-9a-f]{32}-[0-9]+-[0-9a-f]{32}|image-[0-9a-f]+-[0-9]+)"
    rf"(\.[0-9a-f]{{8}}{re.escape(UNFINISHED)})?"
)


class Writer:
    """A thread that writes files and keeps the total size of a folder within a limit.

    It never raises: the first failure is reported to `note` as a sentence, and writing stops.
    """

    def __init__(self, root: Path, limit: int, owner: str, note: Callable[[str], None]) -> None:
        """Start the thread.

        Args:
            limit: total bytes of the cache's files below `root`.
            owner: the owner recorded in each file.
        """
        self._root, self._limit, self._owner, self._note = root, limit, owner, note
        self.on_capacity: Callable[[], None] | None = None  # called from this thread
        self._changed = threading.Condition()
        self._jobs: deque[Path | Sequence[Path] | None] = deque()
        self._waiting: dict[Path, Mapping[str, HostArray]] = {}
        self._pending = 0  # bytes
        self._failed = False
        self._known = 0  # bytes below `root`, as far as this process knows
        self._thread = threading.Thread(target=self._run, name="magistral-mlx-disk", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Bytes in the queue."""
        return self._pending

    @property
    def has_capacity(self) -> bool:
        """Whether the queue accepts another file; never again after a failure."""
        return self._pending < _PENDING and not self._failed

    @property
    def failed(self) -> bool:
        return self._failed

    def waits(self, path: Path) -> bool:
        """Whether a file is in the queue."""
        return path in self._waiting

    def put(self, path: Path, arrays: Mapping[str, HostArray]) -> None:
        """Queue a file for writing."""
        with self._changed:
            self._waiting[path] = arrays
            self._pending += _nbytes(arrays)
            self._jobs.append(path)
            self._changed.notify_all()

    def used(self, paths: Sequence[Path]) -> None:
        """Mark files as recently used, the most valuable first, so that they are evicted last."""
        with self._changed:
            self._jobs.append(paths)
            self._changed.notify_all()

    def wait_for_capacity(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until the queue accepts a file; return whether it does."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_capacity or self._failed, max(0.0, timeout))
        return self.has_capacity

    def close(self, timeout: float) -> None:
        """Write queued files for up to `timeout` seconds, then drop the rest."""
        end = time.monotonic() + timeout
        with self._changed:
            self._jobs.append(None)
            self._changed.notify_all()
        self._thread.join(max(0.0, end - time.monotonic()))
        self._failed = True

    # On the thread

    def _run(self) -> None:
        self._shrink()
        while True:
            with self._changed:
                while not self._jobs:
                    self._changed.wait()
                job = self._jobs.popleft()
            if job is None:
                return
            if isinstance(job, Path):
                self._write(job)
            else:
                _touch(job)

    def _write(self, path: Path) -> None:
        arrays = self._waiting[path]
        if not self._failed:
            try:
                if not path.exists() and _nbytes(arrays) <= self._limit:
                    self._known += write(path, self._owner, arrays)
            except OSError as error:
                self._fail(error)
        with self._changed:
            del self._waiting[path]
            self._pending -= _nbytes(arrays)
            self._changed.notify_all()
        if self._known > self._limit:
            self._shrink()
        if self.on_capacity:
            self.on_capacity()

    def _fail(self, error: OSError) -> None:
        self._failed = True
        why = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            why = "the disk is full"
        self._note(
            f"The prompt cache in {self._root} is off from now on: {why}. Answers are not affected."
        )

    def _shrink(self) -> None:
        """Remove the least recently used files, and unfinished files of ended processes."""
        files = []
        for path in self._files():
            try:
                status = path.stat()
                if not path.name.endswith(UNFINISHED):
                    files.append((status.st_mtime_ns, status.st_size, path))
                elif time.time() - status.st_mtime > _ABANDONED:
                    path.unlink()
            except OSError:  # another process was faster
                continue
        self._known = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if self._known <= self._limit:
                return
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                self._fail(error)
                return
            self._known -= size

    def _files(self) -> Iterator[Path]:
        """The files of the cache, those of other processes and models included."""
        for folder in _listed(self._root, _FOLDER):
            yield from _listed(folder, _FILE)


def _listed(folder: Path, names: re.Pattern[str]) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if names.fullmatch(name)]
    except OSError:  # it is not there, or no folder
        return []


def _touch(paths: Sequence[Path]) -> None:
    now = time.time()
    for n, path in enumerate(paths):
        try:
            os.utime(path, (now, now - n / 1000))
        except OSError:  # it was removed meanwhile
            continue


def _nbytes(arrays: Mapping[str, HostArray]) -> int:
    return sum(array.data.nbytes for array in arrays.values())
