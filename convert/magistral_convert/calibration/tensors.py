"""Whole tensors of the source and of the output, as arrays to compute with."""

from __future__ import annotations

from collections.abc import Callable

from magistral_convert.plan import TensorConversion
from magistral_convert.quantize import dequantize_rows, to_bfloat16
from magistral_convert.source_rows import block_rows, read_rows
from magistral_convert.staging import StagingFolder
from magistral_mlx.backend import mx

READ_BYTES = 8 << 20


class TensorReader:
    """Reads tensors in one dtype. A vector of the model is one row of the source, (columns,)."""

    def __init__(self, work: StagingFolder, dtype: mx.Dtype) -> None:
        self._work, self.dtype = work, dtype

    def original(self, tensor: TensorConversion) -> mx.array:
        """Read a tensor of the source, rounded to bfloat16 first: (rows, columns)."""

        def read(start: int, stop: int) -> mx.array:
            return to_bfloat16(read_rows(tensor, start, stop))

        return self._in_blocks(tensor, 0, tensor.rows, read)

    def written(self, tensor: TensorConversion, start: int = 0, stop: int = 0) -> mx.array:
        """Read rows of what was written, by default all of them: (rows, columns)."""

        def read(first: int, last: int) -> mx.array:
            parts = [self._work.read(output, tensor, first, last) for output in tensor.outputs]
            return dequantize_rows(parts, last - first, tensor.scheme, tensor.outputs[-1].dtype)

        return self._in_blocks(tensor, start, stop or tensor.rows, read)

    def _in_blocks(
        self, tensor: TensorConversion, start: int, stop: int, read: Callable[[int, int], mx.array]
    ) -> mx.array:
        step = block_rows(tensor, READ_BYTES)
        blocks = []
        for first in range(start, stop, step):
            blocks.append(read(first, min(first + step, stop)).astype(self.dtype))
            mx.eval(blocks)
        array = mx.concatenate(blocks) if len(blocks) > 1 else blocks[0]
        mx.eval(array)
        return array[0] if len(tensor.source.shape) == 1 else array
