"""Reading of source tensors by blocks of rows, in the row order of the output."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_convert.disk import avoid_caching, forget_cached
from magistral_convert.fusion import NUMPY_DTYPES, to_float32
from magistral_convert.plan import TensorConversion
from magistral_convert.quantized_source import source_floats
from magistral_mlx.checkpoint.fp8 import scale_block
from magistral_mlx.checkpoint.gguf.layout import deinterleave_heads
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.errors import CheckpointError

# The bits of the smallest value that is not finite once rounded to bfloat16, and integer dtypes.
_FIRST_NOT_FINITE = {
    "<u2": (0x7F80, "<u2", "<i2"),
    "<f2": (0x7C00, "<u2", "<i2"),
    "<f4": (0x7F7F8000, "<u4", "<i4"),
}

Rows = NDArray[Any]


def block_rows(tensor: TensorConversion, block_bytes: int) -> int:
    """Return the rows of a block of about `block_bytes`, in whole heads."""
    unit = tensor.rope_head_rows or 1
    becomes_floats = tensor.is_fp8 or (tensor.is_quantized and not tensor.is_laid_out)
    row_bytes = 4 * tensor.columns if becomes_floats else tensor.row_bytes  # of float32
    return max(unit, block_bytes // row_bytes // unit * unit)


def read_rows(tensor: TensorConversion, start: int, stop: int) -> Rows:
    """Read rows `start` to `stop` of a tensor, in the output's order; (stop - start, columns).

    The dtype is the source's; bfloat16 comes as its bits in uint16, FP8 and what an adapter changes
    as float32. Where rows of a head are reordered, `start` and `stop` must be multiples of a head.

    Raises:
        CheckpointError: the file cannot be read, has become shorter, or holds infinities or NaNs.
    """
    raw = read_raw(tensor.source, tensor.rows, start, stop)
    if tensor.is_fp8:
        rows: Rows = _dequantize_fp8(tensor, raw, start)
    elif tensor.is_quantized:
        beside = [read_raw(part, tensor.rows, start, stop) for part in tensor.beside]
        rows = source_floats(tensor, [raw, *beside])
    else:
        rows = raw.view(NUMPY_DTYPES[tensor.source.dtype])
    if not _is_finite(rows):
        raise CheckpointError(
            f"{tensor.source.name} in {tensor.source.file} holds infinities, NaNs or values beyond "
            "bfloat16. Fetch that file again; if they stay, the checkpoint itself is damaged."
        )
    if tensor.rope_head_rows:
        rows = deinterleave_heads(rows, tensor.rope_head_rows)
    if tensor.fusion:
        return tensor.fusion.apply(rows, start)
    if tensor.channels:
        planes = rows.reshape(len(rows), tensor.channels, -1)
        return planes.transpose(0, 2, 1).reshape(rows.shape)
    return rows


def _dequantize_fp8(tensor: TensorConversion, codes: NDArray[np.uint8], start: int) -> Rows:
    """Dequantize rows from `start` on, (R, columns), to float32."""
    (stored,) = tensor.beside
    block = scale_block(tensor.source.shape, stored.shape)
    assert block is not None
    raw = read_raw(stored, 1, 0, 1)
    scales = to_float32(raw.view(NUMPY_DTYPES[stored.dtype]))
    scales = scales.reshape(-(-tensor.rows // block[0]), -1)
    rows = _FP8_VALUES[codes]
    of_row = scales[np.arange(start, start + len(rows)) // block[0]]
    for column in range(scales.shape[1]):
        rows[:, column * block[1] : (column + 1) * block[1]] *= of_row[:, column : column + 1]
    return rows


def _fp8_values() -> NDArray[np.float32]:
    """The values of the 256 codes of float8_e4m3fn, which has NaNs and no infinities."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


_FP8_VALUES = _fp8_values()


def _is_finite(rows: Rows) -> bool:
    """Return whether all values are finite in bfloat16, by the order of their bits.

    As unsigned numbers the negative infinity and NaNs are the largest, as signed ones the
    positive: two passes over the values, and no copy.
    """
    limit, unsigned, signed = _FIRST_NOT_FINITE[rows.dtype.str]
    sign = 1 << (8 * rows.dtype.itemsize - 1)
    return bool(rows.view(unsigned).max() < limit + sign and rows.view(signed).max() < limit)


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
