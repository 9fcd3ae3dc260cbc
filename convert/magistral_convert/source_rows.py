"""Reading of source tensors by blocks of rows, in the row order of the output."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_convert.disk import avoid_caching, forget_cached
from magistral_convert.plan import TensorConversion
from magistral_convert.quantized_source import source_floats
from magistral_mlx.checkpoint.gguf.layout import deinterleave_heads
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.errors import CheckpointError

# NumPy has no bfloat16: its bits travel as uint16.
_NUMPY_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}

Rows = NDArray[Any]


def block_rows(tensor: TensorConversion, block_bytes: int) -> int:
    """Return the rows of a block of about `block_bytes`, in whole heads."""
    unit = tensor.rope_head_rows or 1
    return max(unit, block_bytes // tensor.row_bytes // unit * unit)


def read_rows(tensor: TensorConversion, start: int, stop: int) -> Rows:
    """Read rows `start` to `stop` of a tensor, in the output's order; (stop - start, columns).

    The dtype is the source's; bfloat16 comes as its bits in uint16. Where rows of a head are
    reordered, `start` and `stop` must be multiples of a head.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter.
    """
    raw = read_raw(tensor.source, tensor.rows, start, stop)
    if tensor.is_quantized:
        beside = [read_raw(part, tensor.rows, start, stop) for part in tensor.beside]
        rows: Rows = source_floats(tensor, [raw, *beside])
    else:
        rows = raw.view(_NUMPY_DTYPES[tensor.source.dtype])
    if tensor.rope_head_rows:
        return deinterleave_heads(rows, tensor.rope_head_rows)
    if tensor.channels:
        planes = rows.reshape(len(rows), tensor.channels, -1)
        return planes.transpose(0, 2, 1).reshape(rows.shape)
    return rows


def read_raw(source: StoredTensor, rows: int, start: int, stop: int) -> NDArray[np.uint8]:
    """Read rows `start` to `stop` of a tensor of so many, as it is stored; (stop - start, bytes).

    Raises:
        CheckpointError: the file cannot be read, or has become shorter.
    """
    size = source.nbytes // rows
    values = np.empty((stop - start, size), np.uint8)
    left, offset = values.data.cast("B"), start * size
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
