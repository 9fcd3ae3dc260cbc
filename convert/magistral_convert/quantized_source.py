"""Rows of a source that is quantized: ggml's blocks laid out for MLX, or made floats again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_convert.plan import TensorConversion
from magistral_mlx.backend import dequantize as to_floats
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.gguf.blocks import Bytes, dequantize
from magistral_mlx.checkpoint.gguf.layout import (
    EXACT,
    bfloat16_bits,
    deinterleave_heads,
    few_rows,
    is_within,
    lay_out_rows,
    reach,
)
from magistral_mlx.errors import CheckpointError

_MOST_BFLOAT16 = float(np.uint32(0x7F7F7FFF).view(np.float32))  # that is not rounded to infinity
_FLOAT16 = 2.0**-10  # more than the relative error of a scale that is rounded to float16


def encode_blocks(tensor: TensorConversion, raw: Bytes) -> list[memoryview]:
    """Encode rows as each output of a tensor whose source is blocks: bfloat16, or laid out.

    Args:
        raw: (R, bytes of a row), whole heads where their rows change places.

    Raises:
        CheckpointError: a value or a scale is infinite, NaN or too large.
    """
    raw = deinterleave_heads(raw, tensor.rope_head_rows)
    parts = _bfloat16(tensor, raw) if tensor.scheme is None else _laid_out(tensor, raw)
    return [part.data.cast("B") for part in parts]


def _bfloat16(tensor: TensorConversion, raw: Bytes) -> list[NDArray[Any]]:
    """The bits of the weights; (R, columns)."""
    found = np.empty((len(raw), tensor.columns), "<u2")
    for few in few_rows(*found.shape):
        weights = dequantize(tensor.source.dtype, raw[few])
        if not is_within(weights, _MOST_BFLOAT16):
            raise _not_finite(tensor, "values beyond bfloat16")
        found[few] = bfloat16_bits(weights)
    return [found]


def _laid_out(tensor: TensorConversion, raw: Bytes) -> list[NDArray[Any]]:
    """Weight, scales and biases."""
    assert tensor.scheme
    shape = (len(raw), tensor.columns)
    weight = np.empty(tensor.scheme.weight_shape(shape), "<u4")
    scales, biases = (np.empty(tensor.scheme.scales_shape(shape), "<f2") for _ in range(2))
    parts = [weight, scales, biases]
    if not lay_out_rows(tensor.source.dtype, raw, tensor.columns, parts):
        raise _not_finite(tensor, "scales beyond float16")
    return parts


def _not_finite(tensor: TensorConversion, too_large: str) -> CheckpointError:
    return CheckpointError(
        f"{tensor.source.name} in {tensor.source.file} holds infinities, NaNs or {too_large}. "
        "Fetch that file again."
    )


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
    """(R, groups) of the rows: the largest error that laying out makes in each group.

    A share of what the weights of the group reach: the rounding of its scale where the type is
    exact, else a step of the form.
    """
    assert tensor.scheme
    reached = reach(tensor.source.dtype, raw)
    groups = tensor.columns // tensor.scheme.group_size
    largest = reached.reshape(len(raw), groups, -1).max(axis=-1)
    share = _FLOAT16 if tensor.source.dtype in EXACT else 2 / (2**tensor.scheme.bits - 1)
    return largest * np.float32(share)
