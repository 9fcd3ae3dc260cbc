"""A file of arrays that is whole or not there, and whose every byte is checked when it is read.

    magic | bytes of the header | digest of the header | header (JSON) | arrays

The header tells whose file it is, and of each array its dtype, shape and digest.
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

UNFINISHED = ".unfinished"  # how the name of a file ends while it is written
_MAGIC = b"MAGISTKV"
_DIGEST = 16
_HEAD = len(_MAGIC) + 8 + _DIGEST
_LONGEST_HEADER = 1 << 24
_AT_ONCE = 1 << 30  # bytes; some systems read no more

# dtype -> how NumPy, which has no bfloat16, holds its bytes
_NUMPY = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "uint32": np.uint32,
}


class DamagedFile(Exception):
    """A file that is cut short, changed, or somebody else's."""


@dataclass(frozen=True)
class HostArray:
    """An array in host memory, as it is stored; it has no part of MLX's any more."""

    dtype: str
    data: NDArray[Any]

    @classmethod
    def of(cls, x: mx.array) -> HostArray:
        """A copy of x, which is evaluated."""
        dtype = str(x.dtype).rpartition(".")[2]
        return cls(dtype, np.array(x.view(mx.uint16) if dtype == "bfloat16" else x))

    def to_device(self) -> mx.array:
        x = mx.array(self.data)
        return x.view(mx.bfloat16) if self.dtype == "bfloat16" else x


def digest(data: bytes | bytearray | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST).hexdigest()


def write(path: Path, owner: str, arrays: Mapping[str, HostArray]) -> int:
    """Write a file of `owner`'s, readable by this user alone -> its bytes.

    It appears under its name whole or not at all.

    Raises:
        OSError: it cannot be written.
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
    """Where an array stands in a file, and what it must be."""

    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    digest: str


class BlockFile:
    """A file whose header has been read. Its arrays may be read from several threads."""

    def __init__(self, path: Path, owner: str) -> None:
        """Read its header.

        Raises:
            DamagedFile: it is not what was written under that name for that owner.
            OSError: it cannot be read, or there is none.
        """
        self.path = path
        with path.open("rb") as file:
            head = file.read(_HEAD)
            length = int.from_bytes(head[len(_MAGIC) : len(_MAGIC) + 8], "little")
            if not head.startswith(_MAGIC) or length > _LONGEST_HEADER:
                raise DamagedFile("it is no file of this kind")
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
        """Some of its arrays.

        Raises:
            DamagedFile: they are not what was written.
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
    """Fill `data` -> the bytes that there were."""
    done = 0
    while done < len(data) and (count := file.readinto(data[done : done + _AT_ONCE])):
        done += count
    return done


def _places(raw: bytes, name: str, owner: str) -> dict[str, _Place]:
    """Where the arrays of a header stand."""
    try:
        header = json.loads(raw)
        if (header["owner"], header["name"]) != (owner, name):
            raise DamagedFile("it belongs to another model, cache scheme or version")
        places, offset = {}, _HEAD + len(raw)
        for array, dtype, shape, known in header["arrays"]:
            nbytes = math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize
            places[array] = _Place(offset, nbytes, dtype, tuple(shape), known)
            offset += nbytes
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile("its header makes no sense") from error
    return places
