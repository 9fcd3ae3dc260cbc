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
_LONGEST_REASON = 300  # characters of a message


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
        CheckpointError: the file cannot be read, is truncated, or is not a safetensors file.
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
        CheckpointError: the file is truncated, or is not a safetensors file.
    """
    length = int.from_bytes(start, "little")
    if size < LENGTH_BYTES or not 2 <= length <= _LONGEST_HEADER:
        raise _damaged(file, "it does not begin like a safetensors file")
    if size < LENGTH_BYTES + length:
        raise _truncated(file, size, LENGTH_BYTES + length)
    return length


def parse_header(file: Path, raw: bytes, size: int) -> dict[str, StoredTensor]:
    """Parse a header: stored name -> tensor; `file` need not be on this machine.

    As the format demands, the tensors must cover the data without gaps or overlaps.

    Raises:
        CheckpointError: the header is damaged, or describes more than `size` bytes.
    """
    data = LENGTH_BYTES + len(raw)
    entries = _parse_json(file, raw)
    entries.pop("__metadata__", None)
    tensors = {name: _tensor(file, data, name, entry) for name, entry in entries.items()}
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=data)
    if size < end:
        raise _truncated(file, size, end)
    _check_coverage(file, tensors, data, size)
    return tensors


def _parse_json(file: Path, raw: bytes) -> dict[str, object]:
    try:
        # json.loads would accept UTF-16 bytes as well, which other readers of the file do not.
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError):
        raise _damaged(file, "its header is not JSON") from None
    except _DuplicateName as error:
        raise _damaged(file, f"its header has two entries for {error}") from None
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    return header


class _DuplicateName(Exception):
    pass


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateName(name)
        found[name] = value
    return found


def _tensor(file: Path, data: int, name: str, entry: object) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]}:
            numbers = [*shape, start, end]
        case _:
            raise _damaged(file, f"its entry for {name} lacks dtype, shape or data_offsets")
    if dtype not in DTYPE_BYTES:
        raise _damaged(file, f"its entry for {name} has the unknown dtype {dtype!r}")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise _damaged(file, f"its entry for {name} has a shape or offsets that are no sizes")
    nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - start != nbytes:
        raise _damaged(file, f"its entry for {name} is {end - start} bytes, not {nbytes}")
    return StoredTensor(name, file, dtype, tuple(shape), data + start, nbytes)


def _check_coverage(file: Path, tensors: dict[str, StoredTensor], data: int, size: int) -> None:
    """Check that the tensors cover the file's data from `data` to `size`, each byte once."""
    end, last = data, "the header"
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            relation = "overlap" if tensor.offset < end else "leave a gap"
            raise _damaged(file, f"the data of {last} and {tensor.name} {relation}")
        end, last = tensor.offset + tensor.nbytes, tensor.name
    if end != size:
        raise _damaged(file, f"{size - end:,} bytes follow the data of {last}")


def _damaged(file: Path, why: str) -> CheckpointError:
    why = " ".join(why.split())[:_LONGEST_REASON]  # names may hold anything
    return CheckpointError(
        f"{file} is damaged or not a safetensors file: {why}. Fetch that file again."
    )


def _truncated(file: Path, size: int, wanted: int) -> CheckpointError:
    return CheckpointError(
        f"{file} is truncated: it has {size:,} of {wanted:,} bytes. Fetch that file again."
    )
