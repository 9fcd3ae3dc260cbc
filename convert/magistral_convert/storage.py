"""The disk: what it refuses told in one line, files that are whole or not there, free room."""

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
def explained(place: Path) -> Iterator[None]:
    """Turn the disk's refusals inside into `StorageError`."""
    try:
        yield
    except OSError as error:
        where = error.filename or place
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk is full at {where}. Free some room and run the same command again: it "
                "goes on where it was."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"no permission to write {where}. Choose a folder of yours with -o."
            ) from error
        raise StorageError(f"cannot write {where}: {error.strerror or error}.") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        flush_to_disk(stream.fileno())
    temporary.replace(path)


def flush_to_disk(file: int) -> None:
    """Bring what was written to the disk itself; on macOS fsync leaves it in the drive's cache."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def avoid_caching(file: int) -> None:
    """Tell macOS that what is read from this descriptor will not be wanted again.

    A source is larger than memory: caching it pushes everything else out, and costs time.
    """
    if hasattr(fcntl, "F_NOCACHE"):
        fcntl.fcntl(file, fcntl.F_NOCACHE, 1)


def forget_cached(file: int, offset: int, nbytes: int) -> None:
    """The same for Linux, which is told after the reading and for a range."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, nbytes, os.POSIX_FADV_DONTNEED)


def occupied(folder: Path) -> int:
    """Bytes of disk that the files under `folder` take; holes in them take none."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def check_room(wanted: list[tuple[Path, int]]) -> None:
    """Raise `StorageError` where a disk lacks the bytes that are wanted at places on it."""
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
                f"has {free / 1e9:.1f} GB free. Free some room, or choose another disk with -o."
            )


def _existing(place: Path) -> Path:
    """The nearest folder above (or at) `place` that is there."""
    return next(path for path in (place, *place.absolute().parents) if path.is_dir())
