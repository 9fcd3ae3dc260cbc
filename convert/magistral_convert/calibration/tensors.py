"""Whole tensors of the source and of the output, as arrays to compute with."""

from __future__ import annotations

from collections.abc import Callable

from magistral_convert.plan import TensorConversion
from magistral_convert.quantize import dequantize_rows, to_bfloat16
from magistral_convert.source_rows import block_rows, read_rows
from magistral_convert.staging import StagingFolder
from magistral_mlx.backend import mx

READ_BYTES = 8 << 20


def read_original(tensor: TensorConversion, dtype: mx.Dtype) -> mx.array:
    """Read a tensor of the source, rounded to bfloat16 first: (rows, columns), or (columns,)."""

    def read(start: int, stop: int) -> mx.array:
        return to_bfloat16(read_rows(tensor, start, stop))

    return _in_blocks(tensor, 0, tensor.rows, read, dtype)


def read_sample(tensor: TensorConversion, rows: int) -> mx.array:
    """Read about so many rows from all over a tensor of the source, in bfloat16."""
    unit = tensor.rope_head_rows or 1
    units = tensor.rows // unit
    places = sorted({units * n // max(1, rows // unit) for n in range(max(1, rows // unit))})
    parts = [to_bfloat16(read_rows(tensor, p * unit, (p + 1) * unit)) for p in places]
    return mx.concatenate(parts)


class WrittenTensors:
    """Reads back what has been written, dequantized."""

    def __init__(self, work: StagingFolder, dtype: mx.Dtype) -> None:
        self._work, self._dtype = work, dtype

    def read(self, tensor: TensorConversion, start: int = 0, stop: int = 0) -> mx.array:
        """Read rows of a tensor, by default all of them: (rows, columns), or (columns,)."""

        def read(first: int, last: int) -> mx.array:
            parts = [self._work.read(output, tensor, first, last) for output in tensor.outputs]
            return dequantize_rows(parts, last - first, tensor.scheme, tensor.outputs[-1].dtype)

        return _in_blocks(tensor, start, stop or tensor.rows, read, self._dtype)


def _in_blocks(
    tensor: TensorConversion,
    start: int,
    stop: int,
    read: Callable[[int, int], mx.array],
    dtype: mx.Dtype,
) -> mx.array:
    step = block_rows(tensor, READ_BYTES)
    blocks = []
    for first in range(start, stop, step):
        blocks.append(read(first, min(first + step, stop)).astype(dtype))
        mx.eval(blocks)
    array = mx.concatenate(blocks) if len(blocks) > 1 else blocks[0]
    mx.eval(array)
    return array[0] if len(tensor.source.shape) == 1 else array
