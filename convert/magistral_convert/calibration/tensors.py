"""Whole tensors of the source and of the output, as arrays to compute with."""

from __future__ import annotations

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
        step = block_rows(tensor, READ_BYTES)
        blocks = []
        for start in range(0, tensor.rows, step):
            rows = read_rows(tensor, start, min(start + step, tensor.rows))
            blocks.append(to_bfloat16(rows).astype(self.dtype))
            mx.eval(blocks)
        return _shaped(mx.concatenate(blocks) if len(blocks) > 1 else blocks[0], tensor)

    def written(self, tensor: TensorConversion, start: int = 0, stop: int = 0) -> mx.array:
        """Read rows of what was written, by default all of them: (rows, columns)."""
        stop = stop or tensor.rows
        parts = [self._work.read(output, tensor, start, stop) for output in tensor.outputs]
        scales = tensor.outputs[-1].dtype
        array = dequantize_rows(parts, stop - start, tensor.scheme, scales).astype(self.dtype)
        mx.eval(array)
        return _shaped(array, tensor)


def _shaped(array: mx.array, tensor: TensorConversion) -> mx.array:
    return array[0] if len(tensor.source.shape) == 1 else array
