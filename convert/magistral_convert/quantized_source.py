"""Rows of a source that is quantized: ggml's blocks laid out for MLX, or made floats again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from magistral_convert.plan import TensorConversion
from magistral_mlx.backend import dequantize as to_floats
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.gguf.blocks import Bytes, dequantize
from magistral_mlx.checkpoint.gguf.layout import (
    EXACT,
    deinterleave_heads,
    few_rows,
    lay_out_rows,
    reach,
)
from magistral_mlx.errors import CheckpointError

_FLOAT16 = 2.0**-10  # more than the relative error of a scale that is rounded to float16


def encode_blocks(tensor: TensorConversion, raw: Bytes) -> list[memoryview]:
    """Encode rows for the weight, the scales and the biases of a tensor whose source is blocks.

    Args:
        raw: (R, bytes of a row), whole heads where their rows change places.

    Raises:
        CheckpointError: a scale is infinite, NaN or beyond float16.
    """
    assert tensor.scheme
    shape = (len(raw), tensor.columns)
    weight = np.empty(tensor.scheme.weight_shape(shape), "<u4")
    scales, biases = (np.empty(tensor.scheme.scales_shape(shape), "<f2") for _ in range(2))
    parts = (weight, scales, biases)
    if not lay_out_rows(tensor.source.dtype, raw, tensor.columns, parts):
        raise CheckpointError(
            f"{tensor.source.name} in {tensor.source.file} holds infinities, NaNs or scales beyond "
            "float16. Fetch that file again."
        )
    ordered = (deinterleave_heads(part, tensor.rope_head_rows) for part in parts)
    return [np.ascontiguousarray(part).data.cast("B") for part in ordered]


def source_floats(tensor: TensorConversion, parts: list[Bytes]) -> NDArray[np.float32]:
    """(R, columns) of a tensor whose source is blocks or MLX's quantized form, in its order.

    Args:
        parts: (R, bytes of a row) of the source and of each tensor that goes with it.
    """
    if tensor.stored is None:
        found = np.empty((len(parts[0]), tensor.columns), np.float32)
        for few in few_rows(*found.shape):
            found[few] = dequantize(tensor.source.dtype, parts[0][few])
        return found
    scheme = tensor.stored
    weight = mx.array(parts[0].view("<u4"))
    scales, *biases = (
        mx.array(part).view(_MLX_DTYPES[stored.dtype])
        for part, stored in zip(parts[1:], tensor.beside, strict=True)
    )
    return np.array(
        to_floats(weight, scales, biases[0] if biases else None, scheme, mx.float32), copy=False
    )


_MLX_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U8": mx.uint8}


def layout_bound(tensor: TensorConversion, raw: Bytes) -> NDArray[np.float32]:
    """(R, groups) of the output: the largest error that laying out makes in each group.

    A share of what the weights of the group reach: the rounding of its scale where the type is
    exact, else a step of the form.
    """
    assert tensor.scheme
    reached = reach(tensor.source.dtype, raw)
    groups = tensor.columns // tensor.scheme.group_size
    largest = reached.reshape(len(raw), groups, -1).max(axis=-1)
    share = _FLOAT16 if tensor.source.dtype in EXACT else 2 / (2**tensor.scheme.bits - 1)
    return deinterleave_heads(largest * np.float32(share), tensor.rope_head_rows)
