"""Disk access: errors in one line, atomic writes, free space and page-cache hints."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magistral_mlx.errors import StorageError

_SPARE = 100 << 20  # bytes that stay free


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Translate every `OSError` of the block into `StorageError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or place
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk is full at {where}. Free some space and run the same command again: it "
                "continues where it stopped."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"no permission to write {where}. Choose a folder of yours with -o."
            ) from error
        raise StorageError(f"cannot write {where}: {error.strerror or error}.") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically: it appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        flush_to_disk(stream.fileno())
    temporary.replace(path)


def flush_to_disk(file: int) -> None:
    """Flush a file to the disk itself; on macOS fsync leaves it in the drive's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def avoid_caching(file: int) -> None:
    """Keep reads from this descriptor out of the page cache (macOS).

    A source is larger than memory: caching it evicts everything else, and costs time.
    """
    if hasattr(fcntl, "F_NOCACHE"):
        fcntl.fcntl(file, fcntl.F_NOCACHE, 1)


def forget_cached(file: int, offset: int, nbytes: int) -> None:
    """Drop a range that was read from the page cache (Linux)."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_DONTNEED)


def allocated_bytes(folder: Path) -> int:
    """Return the bytes of disk that the files under `folder` take; holes take none."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def check_free_space(wanted: list[tuple[Path, int]]) -> None:
    """Raise `StorageError` where a disk lacks the bytes needed at the paths on it."""
    by_disk: dict[int, tuple[Path, int]] = {}
    for place, needed in wanted:
        existing = _existing(place)
        disk = existing.stat().st_dev
        by_disk[disk] = (existing, by_disk.get(disk, (existing, 0))[1] + needed)
    for place, needed in by_disk.values():
        free = shutil.disk_usage(place).free
        if needed + _SPARE > free:
            raise StorageError(
                f"the conversion needs {needed / 1e9:.1f} GB more on the disk of {place}, which "
                f"has {free / 1e9:.1f} GB free. Free some space, or choose another disk with -o."
            )


def _existing(place: Path) -> Path:
    """Return `place` or its nearest parent that exists."""
    return next(path for path in (place, *place.absolute().parents) if path.is_dir())
