"""Headers of GGUF files: metadata and where tensors lie, without reading weights.

A GGUF file is a magic, a version, two counts, metadata pairs, tensor entries, padding and raw
data (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). Every count and length is checked
against the bytes that are there before anything is allocated for it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.errors import CheckpointError, UnsupportedModel

# ggml type -> (weights of a block, bytes of a block).
BLOCKS = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2),
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
    "Q6_K": (256, 210), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136),
}  # fmt: skip
_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_ENTRIES = 65_536  # metadata pairs, and tensors; real files have some hundred
_MOST_DIMENSIONS = 4
_KEPT = 64  # elements of an array that is kept; vocabularies are passed over
_ALIGNMENT = 32


@dataclass(frozen=True)
class GgufFile:
    """The header of one file. `metadata` leaves out long arrays."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unnamed"))


def read_gguf(path: Path) -> GgufFile:
    """Read and check the header of a GGUF file.

    Raises:
        CheckpointError: the file cannot be read, is truncated or damaged, or is no GGUF file.
        UnsupportedModel: it stores a tensor in a type that this runtime does not read.
    """
    try:
        size = path.stat().st_size
        if size < len(_MAGIC):
            raise _damaged(path, "it does not begin like a GGUF file")
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as data:
            found = parse_gguf(path, data, size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from None
    assert found
    return found


def parse_gguf(path: Path, data: mmap.mmap | bytes, size: int) -> GgufFile | None:
    """The header of a file of `size` bytes from its first ones; None where it has not ended yet.

    `path` may not be here yet. Raises as `read_gguf` does.
    """
    try:
        return _Parser(path, data, size).file()
    except _Unfinished:
        return None


class _Unfinished(Exception):
    """The header goes on after the bytes that are there, but not after the end of the file."""


class _Parser:
    """A position in the bytes of a header, which never goes beyond their end."""

    def __init__(self, path: Path, data: mmap.mmap | bytes, size: int) -> None:
        self._path, self._data, self._size = path, data, size
        self._position = 0

    def file(self) -> GgufFile:
        if self._take(4) != _MAGIC:
            raise _damaged(self._path, "it does not begin like a GGUF file")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise UnsupportedModel(
                f"{self._path} is a GGUF file of version {version}; this runtime reads versions "
                "2 and 3, little-endian. Fetch a newer file of the model."
            )
        tensors, pairs = self._count("tensors"), self._count("metadata pairs")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string("a metadata key")
            if key in metadata:
                raise _damaged(self._path, f"its metadata names {key} twice")
            metadata[key] = self._value(key, self._scalar("I"))
        found = [self._tensor() for _ in range(tensors)]
        start = self._data_start(metadata)
        placed: dict[str, StoredTensor] = {}
        for name, kind, shape, offset in found:
            if name in placed:
                raise _damaged(self._path, f"it holds the tensor {name} twice")
            placed[name] = self._place(name, kind, shape, start + offset)
        return GgufFile(self._path, metadata, placed)

    def _tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type, shape (rows first, as everywhere but in GGUF) and offset in the data."""
        name = self._string("a tensor's name")
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise _damaged(self._path, f"{name} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        kind = self._scalar("I")
        return name, kind, shape, self._scalar("Q")

    def _place(self, name: str, kind: int, shape: tuple[int, ...], offset: int) -> StoredTensor:
        type_name = _TYPES.get(kind, f"type {kind}")
        if type_name not in BLOCKS:
            raise UnsupportedModel(
                f"{self._path} stores {name} as {type_name}, which this runtime does not read. "
                f"Take a file of the model in one of {', '.join(BLOCKS)} or a mix of them, such as "
                "Q4_K_M."
            )
        block, block_bytes = BLOCKS[type_name]
        if not all(shape) or shape[-1] % block:
            raise _damaged(self._path, f"{name} cannot be {list(shape)} in {type_name}")
        nbytes = math.prod(shape) // block * block_bytes
        if offset + nbytes > self._size:
            raise CheckpointError(
                f"{self._path} is truncated: it has {self._size:,} of {offset + nbytes:,} bytes. "
                "Fetch that file again."
            )
        return StoredTensor(name, self._path, type_name, shape, offset, nbytes)

    def _data_start(self, metadata: Mapping[str, Any]) -> int:
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment % 8:
            raise _damaged(self._path, f"its alignment is {alignment!r}")
        return -(-self._position // alignment) * alignment

    def _value(self, key: str, kind: int) -> Any:
        """A metadata value; None for an array that is not kept."""
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        raise _damaged(self._path, f"its value of {key} is of the unknown type {kind}")

    def _array(self, key: str) -> list[Any] | None:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == _STRING:
            self._skip_strings(key, count)
            return None
        if kind not in _SCALARS:
            raise _damaged(self._path, f"the array {key} is of the unsupported type {kind}")
        raw = self._take(count * struct.calcsize(_SCALARS[kind]), keep=count <= _KEPT)
        return list(struct.unpack(f"<{count}{_SCALARS[kind]}", raw)) if count <= _KEPT else None

    def _skip_strings(self, key: str, count: int) -> None:
        """Pass over an array of strings, such as a vocabulary."""
        if count * 8 > self._size - self._position:
            raise _damaged(self._path, f"the array {key} says that it has {count:,} strings")
        position, last, length = self._position, self._size - 8, struct.Struct("<Q").unpack_from
        for _ in range(count):
            if position > last:
                raise _damaged(self._path, f"the array {key} goes beyond the end of the file")
            if position + 8 > len(self._data):
                raise _Unfinished
            position += 8 + length(self._data, position)[0]
        self._position = position
        self._take(0)

    def _string(self, what: str) -> str:
        length = self._scalar("Q")
        if length > self._size - self._position:
            raise _damaged(self._path, f"{what} says that it is {length:,} bytes long")
        return self._take(length).decode("utf-8", "replace")

    def _count(self, what: str) -> int:
        count = int(self._scalar("Q"))
        if count > _MOST_ENTRIES:
            raise _damaged(self._path, f"it says that it has {count:,} {what}")
        return count

    def _scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _take(self, count: int, *, keep: bool = True) -> bytes:
        start, end = self._position, self._position + count
        if end > self._size:
            raise _damaged(self._path, "its header goes beyond the end of the file")
        if end > len(self._data):
            raise _Unfinished
        self._position = end
        return self._data[start:end] if keep else b""


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or no GGUF file: {why}. Fetch that file again.")
