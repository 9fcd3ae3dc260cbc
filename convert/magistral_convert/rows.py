"""Rows of a source tensor, as the output wants them ordered. Nothing else is held in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_convert.plan import Task
from magistral_convert.storage import avoid_caching, forget_cached
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.errors import CheckpointError

# NumPy has no bfloat16: its bits travel as uint16.
_NUMPY_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}

Rows = NDArray[Any]


def block_rows(task: Task, block_bytes: int) -> int:
    """Rows that are read at once: about `block_bytes`, and never a part of a head."""
    unit = task.halve_heads or 1
    return max(unit, block_bytes // task.row_bytes // unit * unit)


def read_rows(task: Task, start: int, stop: int) -> Rows:
    """Rows `start` to `stop` of a task's source, in the output's order; (stop - start, columns).

    The dtype is the source's; bfloat16 comes as its bits in uint16. Where rows of a head change
    places, `start` and `stop` stand between two heads.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter.
    """
    rows = _read(task.source, start * task.row_bytes, (stop - start) * task.columns)
    rows = rows.reshape(stop - start, task.columns)
    if task.halve_heads:
        pairs = rows.reshape(-1, task.halve_heads // 2, 2, task.columns)
        return pairs.transpose(0, 2, 1, 3).reshape(rows.shape)
    if task.channels:
        planes = rows.reshape(len(rows), task.channels, -1)
        return planes.transpose(0, 2, 1).reshape(rows.shape)
    return rows


def _read(source: StoredTensor, offset: int, count: int) -> Rows:
    values = np.empty(count, _NUMPY_DTYPES[source.dtype])
    left = values.data.cast("B")
    try:
        with source.file.open("rb", buffering=0) as stream:
            avoid_caching(stream.fileno())
            stream.seek(source.offset + offset)
            while left and (got := stream.readinto(left)):
                left = left[got:]
            forget_cached(stream.fileno(), source.offset + offset, values.nbytes)
    except OSError as error:
        raise CheckpointError(f"cannot read {source.file}: {error.strerror}.") from None
    if left:
        raise CheckpointError(
            f"{source.file} has become shorter than its header says. Fetch that file again."
        )
    return values
