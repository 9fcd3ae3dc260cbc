"""A checksummed file of arrays, written atomically.

    magic | length of the header | digest of the header | header (JSON) | arrays

The header names the owner of the file, and dtype, shape and digest of each array.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx

UNFINISHED = ".unfinished"  # suffix of a file that is being written
_MAGIC = b"MAGISTKV"
_DIGEST = 16
_HEAD = len(_MAGIC) + 8 + _DIGEST
_LONGEST_HEADER = 1 << 24
_AT_ONCE = 1 << 30  # bytes of one read; some systems do not read more

# MLX dtype -> NumPy dtype of the same bytes; NumPy has no bfloat16.
_NUMPY = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "uint32": np.uint32,
}


class DamagedFile(Exception):
    """A file that is truncated, changed, or belongs to another owner."""


@dataclass(frozen=True)
class HostArray:
    """An array in host memory, independent of MLX."""

    dtype: str
    data: NDArray[Any]

    @classmethod
    def of(cls, x: mx.array) -> HostArray:
        """Copy x, which must be evaluated."""
        dtype = str(x.dtype).rpartition(".")[2]
        return cls(dtype, np.array(x.view(mx.uint16) if dtype == "bfloat16" else x))

    def to_device(self) -> mx.array:
        x = mx.array(self.data)
        return x.view(mx.bfloat16) if self.dtype == "bfloat16" else x


def digest(data: bytes | bytearray | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST).hexdigest()


def write(path: Path, owner: str, arrays: Mapping[str, HostArray]) -> int:
    """Write a file atomically, readable by this user alone, and return its size in bytes.

    Raises:
        OSError: the file cannot be written.
    """
    entries: list[object] = []
    parts: list[memoryview] = []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array.data).data.cast("B")
        entries.append([name, array.dtype, list(array.data.shape), digest(data)])
        parts.append(data)
    header = json.dumps({"owner": owner, "name": path.name, "arrays": entries}).encode()
    head = _MAGIC + len(header).to_bytes(8, "little") + bytes.fromhex(digest(header))
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(head + header)
            f.writelines(parts)
            f.flush()
            os.fsync(f.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return _HEAD + len(header) + sum(len(part) for part in parts)


class _Place(NamedTuple):
    """Offset, size and expected content of an array in a file."""

    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    digest: str


class BlockFile:
    """A file whose header has been read. Several threads may read its arrays."""

    def __init__(self, path: Path, owner: str) -> None:
        """Read and check the header.

        Raises:
            DamagedFile: the file is not the one written under this name for this owner.
            OSError: the file is missing or cannot be read.
        """
        self.path = path
        with path.open("rb") as file:
            head = file.read(_HEAD)
            length = int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 8], "little")
            if not head.startswith(_MAGIC) or length > _LONGEST_HEADER:
                raise DamagedFile("it is not a file of this format")
            raw = file.read(length)
            if len(head) < _HEAD or digest(raw) != head[-_DIGEST:].hex():
                raise DamagedFile("its header has changed")
            self._places = _places(raw, path.name, owner)
            end = max((p.offset + p.nbytes for p in self._places.values()), default=0)
            if os.fstat(file.fileno()).st_size != end:
                raise DamagedFile("it is cut short")

    @property
    def names(self) -> Sequence[str]:
        return list(self._places)

    def read(self, names: Sequence[str]) -> list[HostArray]:
        """Read the named arrays.

        Raises:
            DamagedFile: an array differs from what was written.
            OSError: the file cannot be read.
        """
        arrays = []
        with self.path.open("rb", buffering=0) as file:
            for name in names:
                place = self._places[name]
                data = bytearray(place.nbytes)
                file.seek(place.offset)
                if _read_into(file, memoryview(data)) < place.nbytes:
                    raise DamagedFile("it is cut short")
                if digest(memoryview(data)) != place.digest:
                    raise DamagedFile(f"{name} has changed")
                values = np.frombuffer(data, _NUMPY[place.dtype]).reshape(place.shape)
                arrays.append(HostArray(place.dtype, values))
        return arrays


def _read_into(file: RawIOBase, data: memoryview) -> int:
    """Read into `data` and return the number of bytes read, fewer at the end of the file."""
    done = 0
    while done < len(data) and (count := file.readinto(data[done : done + _AT_ONCE])):
        done += count
    return done


def _places(raw: bytes, name: str, owner: str) -> dict[str, _Place]:
    """Parse a header into the places of its arrays."""
    try:
        header = json.loads(raw)
        if (header["owner"], header["name"]) != (owner, name):
            raise DamagedFile("it belongs to another model, cache scheme or version")
        places, offset = {}, _HEAD + len(raw)
        for array, dtype, shape, known in header["arrays"]:
            nbytes = math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize
            places[array] = _Place(offset, nbytes, dtype, tuple(shape), known)
            offset += nbytes
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile("its header is invalid") from error
    return places
