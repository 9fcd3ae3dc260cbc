"""Importance matrices of llama.cpp: the mean square of each input column of each matrix.

`llama-imatrix` writes one of two formats. The older (`.dat`) is a count, then for each matrix its
name, the number of passes and the sums; the newer is a GGUF file with `NAME.in_sum2` and
`NAME.counts`. Names are llama.cpp's, which `canonical_name` reads. Rows of query and key matrices
stand in another order there than here, columns do not.

Every count is checked against the bytes that are there before anything is allocated for it.
"""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magistral_convert.plan import ConversionPlan
from magistral_mlx.checkpoint.gguf.header import read_gguf
from magistral_mlx.checkpoint.names import canonical_name
from magistral_mlx.errors import InvalidOption
from magistral_mlx.files import reading, user_path

_GGUF = b"GGUF"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_BYTES = 1 << 30  # those of models of this size have 10 million
_MOST_ENTRIES = 65_536
_LONGEST_NAME = 1024

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ImportanceMatrix:
    """Importance of the columns of a model's matrices.

    file: name of the file. columns: canonical tensor name -> (columns,) mean squares. missing:
    quantized tensors that it has none for. unknown: names in the file that are not the model's.
    """

    file: str
    columns: Mapping[str, Floats]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def identity(self) -> str:
        """Digest of what is used of it."""
        digest = hashlib.sha256()
        for name, values in sorted(self.columns.items()):
            digest.update(name.encode())
            digest.update(values.tobytes())
        return digest.hexdigest()


def read_importance_matrix(file: str, plan: ConversionPlan) -> ImportanceMatrix:
    """Read a file in either format, for the quantized matrices of a conversion.

    Raises:
        InvalidOption: the file cannot be read, is damaged, is none, or is another model's.
        CheckpointError, UnsupportedModel: it is a GGUF file, and damaged.
    """
    path = user_path(file)
    with reading(file, "importance matrix", InvalidOption):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidOption(f"--imatrix {file} is no file. Name one that llama-imatrix wrote.")
        if status.st_size > _MOST_BYTES:
            raise _damaged(file, f"it has {status.st_size:,} bytes, more than any")
        raw = path.read_bytes()
    entries = _gguf_entries(path, file, raw) if raw[:4] == _GGUF else _legacy_entries(file, raw)
    wanted = {tensor.name: tensor.columns for tensor in plan.tensors if tensor.scheme}
    every = {tensor.name for tensor in plan.tensors}
    columns: dict[str, Floats] = {}
    unknown = []
    for name, values in entries.items():
        canonical = canonical_name(name)
        if canonical not in every:
            unknown.append(name)
        elif canonical in wanted:
            if len(values) != wanted[canonical]:
                raise InvalidOption(
                    f"--imatrix {file} has {len(values):,} values for {name}, and this model's "
                    f"matrix has {wanted[canonical]:,} columns. Name a file that was made with "
                    "this model."
                )
            columns[canonical] = values
    if not columns:
        raise InvalidOption(
            f"--imatrix {file} has values for {len(entries)} matrices, and none is one that is "
            "quantized here. Name a file that was made with this model."
        )
    missing = tuple(name for name in wanted if name not in columns)
    return ImportanceMatrix(path.name, columns, missing, tuple(unknown))


def _legacy_entries(file: str, raw: bytes) -> dict[str, Floats]:
    """Read the older format: name -> mean squares. What was never used is left out."""
    data = _Reader(file, raw)
    count = data.integer("the number of matrices", 1, _MOST_ENTRIES)
    entries: dict[str, Floats] = {}
    for _ in range(count):
        length = data.integer("the length of a name", 1, _LONGEST_NAME)
        name = data.take(length).decode("utf-8", "replace")
        passes = data.integer(f"the number of passes of {name}", 0, 2**31 - 1)
        values = data.floats(data.integer(f"the number of values of {name}", 0, 2**31 - 1))
        if name in entries:
            raise _damaged(file, f"it has {name} twice")
        _check_values(file, name, values)
        if passes and len(values):
            entries[name] = values / np.float32(passes)
    return entries


def _gguf_entries(path: Path, file: str, raw: bytes) -> dict[str, Floats]:
    """Read the newer format: name -> mean squares. What was never used is left out."""
    tensors = read_gguf(path).tensors
    entries: dict[str, Floats] = {}
    for full_name, tensor in tensors.items():
        if not full_name.endswith(_SUMS):
            continue
        name = full_name.removesuffix(_SUMS)
        counted = tensors.get(name + _COUNTS)
        if counted is None:
            raise _damaged(file, f"it has sums of {name} without their counts")
        sums, counts = (
            np.frombuffer(raw[part.offset : part.offset + part.nbytes], "<f4")
            if part.dtype == "F32"
            else None
            for part in (tensor, counted)
        )
        if sums is None or counts is None:
            raise _damaged(file, f"{name} is not in float32")
        _check_values(file, name, sums)
        _check_values(file, name, counts)
        if len(counts) > 1:
            continue  # experts, which no model of this architecture has
        if counts[0] > 0:
            entries[name] = sums / counts[0]
    if not any(name.endswith(_SUMS) for name in tensors):
        raise InvalidOption(
            f"--imatrix {file} is a GGUF file, but no importance matrix: it has no sums of inputs. "
            "Name one that llama-imatrix wrote."
        )
    return entries


def _check_values(file: str, name: str, values: Floats) -> None:
    if not (np.isfinite(values) & (values >= 0)).all():
        raise _damaged(file, f"{name} has values that are negative or no numbers")


class _Reader:
    """A position in the bytes of a file, which never goes beyond their end."""

    def __init__(self, file: str, raw: bytes) -> None:
        self._file, self._raw, self._position = file, raw, 0

    def integer(self, what: str, least: int, most: int) -> int:
        (value,) = struct.unpack("<i", self.take(4))
        if not least <= value <= most:
            raise _damaged(self._file, f"{what} is {value:,}")
        return int(value)

    def floats(self, count: int) -> Floats:
        return np.frombuffer(self.take(4 * count), "<f4")

    def take(self, count: int) -> bytes:
        start, end = self._position, self._position + count
        if end > len(self._raw):
            raise _damaged(
                self._file, f"it ends after {len(self._raw):,} bytes, in the middle of an entry"
            )
        self._position = end
        return self._raw[start:end]


def _damaged(file: str, why: str) -> InvalidOption:
    return InvalidOption(
        f"--imatrix {file} is damaged or no importance matrix: {why}. Name a file that "
        "llama-imatrix wrote."
    )


def by_part(names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield each part of a layer among canonical names, and its layers; others by themselves."""
    layers: dict[str, list[int]] = {}
    for name in names:
        head, found, rest = name.removesuffix(".weight").partition(".layers.")
        number, _, part = rest.partition(".")
        if found:
            layers.setdefault(f"{head}.layers.*.{part}", []).append(int(number))
        else:
            layers[head] = []
    for part, numbers in layers.items():
        yield part, _ranges(sorted(numbers))


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2 5" """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return " ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
