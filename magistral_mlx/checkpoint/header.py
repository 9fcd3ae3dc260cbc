"""Headers of safetensors files, read without the weights.

A safetensors file is an 8-byte little-endian length, a JSON header of that length and raw bytes
(https://huggingface.co/docs/safetensors). Reading it here lets a truncated or foreign file be
refused in a millisecond, before anything is loaded or converted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from magistral_mlx.errors import CheckpointError

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16")
LENGTH_BYTES = 8
_LONGEST_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """Location of one tensor: `offset` is in bytes from the start of `file`."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read the header of a safetensors file: stored name -> tensor.

    Raises:
        CheckpointError: the file cannot be read, is truncated, or is no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = header_length(file, stream.read(LENGTH_BYTES), size)
            return parse_header(file, stream.read(length), size)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}.") from None


def header_length(file: Path, start: bytes, size: int) -> int:
    """Return the bytes of the header, from the first `LENGTH_BYTES` of a file of `size` bytes.

    Raises:
        CheckpointError: the file is truncated, or is no safetensors file.
    """
    length = int.from_bytes(start, "little")
    if size < LENGTH_BYTES or not 2 <= length <= _LONGEST_HEADER:
        raise _damaged(file, "it does not begin like a safetensors file")
    if size < LENGTH_BYTES + length:
        raise _truncated(file, size, LENGTH_BYTES + length)
    return length


def parse_header(file: Path, raw: bytes, size: int) -> dict[str, StoredTensor]:
    """Parse a header: stored name -> tensor; `file` need not be on this machine.

    Raises:
        CheckpointError: the header makes no sense, or says more than `size` bytes hold.
    """
    try:
        header = json.loads(raw)
    except ValueError:
        raise _damaged(file, "its header is not JSON") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    header.pop("__metadata__", None)
    data = LENGTH_BYTES + len(raw)
    tensors = {name: _tensor(file, data, name, entry) for name, entry in header.items()}
    end = max((t.offset + t.nbytes for t in tensors.values()), default=data)
    if size < end:
        raise _truncated(file, size, end)
    return tensors


def _tensor(file: Path, data: int, name: str, entry: object) -> StoredTensor:
    try:
        dtype, shape = entry["dtype"], tuple(entry["shape"])  # type: ignore[index]
        start, end = entry["data_offsets"]  # type: ignore[index]
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        is_whole = end - start == nbytes and start >= 0
    except (KeyError, TypeError, ValueError):
        raise _damaged(file, f"its entry for {name} makes no sense") from None
    if not is_whole:
        raise _damaged(file, f"its entry for {name} is {end - start} bytes, not {nbytes}")
    return StoredTensor(name, file, dtype, shape, data + start, nbytes)


def _damaged(file: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is damaged or no safetensors file: {why}. Fetch that file again."
    )


def _truncated(file: Path, size: int, wanted: int) -> CheckpointError:
    return CheckpointError(
        f"{file} is truncated: it has {size:,} of {wanted:,} bytes. Fetch that file again."
    )
