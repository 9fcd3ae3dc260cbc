"""Encoding of rows into the bytes of the output, quantized or bfloat16, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from magistral_convert.source_rows import Rows
from magistral_mlx.backend import mx
from magistral_mlx.quantization import Quantization

# Mode -> the largest value of its smallest scale that is a normal number, 2^-126. A group without
# one so large becomes zeros: MLX would give it the code of another scale, of up to 1e38.
SMALLEST_GROUPS = {"mxfp4": 6 * 2.0**-126, "mxfp8": 448 * 2.0**-126}
_SIGN = 0x8000  # bit of a bfloat16


def quantize_rows(rows: Rows, scheme: Quantization | None) -> list[memoryview]:
    """Encode rows as each output of a tensor: the weight, then scales, then biases.

    Values become bfloat16 first, as in mlx-lm, so the result equals its conversion byte for byte.

    Args:
        rows: (R, columns) as `read_rows` gives them.
        scheme: None keeps bfloat16.
    """
    if scheme is None:
        if rows.dtype == np.uint16:
            return [np.ascontiguousarray(rows).data.cast("B")]
        return encode_arrays([to_bfloat16(rows)])
    values = _flush(to_bfloat16(rows), scheme)
    return encode_arrays(
        mx.quantize(values, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode)
    )


def _flush(values: mx.array, scheme: Quantization) -> mx.array:
    """Replace groups of bfloat16 that are too small for a scale by zeros of the same signs."""
    smallest = SMALLEST_GROUPS.get(scheme.mode)
    if smallest is None:
        return values
    # Sizes are ordered as their bits are, of which a backend flushes none.
    limit = int(np.float32(smallest).view(np.uint32)) >> 16
    bits = values.view(mx.uint16).reshape(len(values), -1, scheme.group_size)
    is_small = (bits & (_SIGN - 1)).max(axis=-1, keepdims=True) < limit
    if not is_small.any().item():
        return values
    return mx.where(is_small, bits & _SIGN, bits).reshape(values.shape).view(mx.bfloat16)


def dequantize_rows(
    outputs: list[bytes], rows: int, scheme: Quantization | None, scales_dtype: str = "BF16"
) -> mx.array:
    """Decode the output of `quantize_rows` into float32 (rows, columns).

    Args:
        scales_dtype: of affine scales and biases, BF16 or F16.
    """
    if scheme is None:
        bits = np.frombuffer(outputs[0], "<u2").reshape(rows, -1)
        return to_bfloat16(bits).astype(mx.float32)
    weight = mx.array(np.frombuffer(outputs[0], "<u4").reshape(rows, -1))
    if not scheme.has_biases:
        scales = mx.array(np.frombuffer(outputs[1], np.uint8).reshape(rows, -1))
        biases = None
    else:
        dtype = mx.float16 if scales_dtype == "F16" else mx.bfloat16
        scales, biases = (
            mx.array(np.frombuffer(output, "<u2").reshape(rows, -1)).view(dtype).astype(mx.float32)
            for output in outputs[1:]
        )
    values = mx.dequantize(
        weight,
        scales,
        biases,
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
    )
    return values.astype(mx.float32)


def to_bfloat16(rows: Rows) -> mx.array:
    """Cast to bfloat16; uint16 holds the bits of bfloat16 already."""
    array = mx.array(np.ascontiguousarray(rows))
    return array.view(mx.bfloat16) if rows.dtype == np.uint16 else array.astype(mx.bfloat16)


def bfloat16_values(rows: Rows) -> NDArray[np.float32]:
    """Return rows, rounded to the nearest values of bfloat16, as float32."""
    if rows.dtype == np.uint16:
        return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)).view(np.float32)


def encode_arrays(arrays: Sequence[mx.array]) -> list[memoryview]:
    """Return the bytes of arrays, evaluated together; Python's buffers know no bfloat16."""
    plain = [array.view(mx.uint16) if array.dtype == mx.bfloat16 else array for array in arrays]
    mx.eval(plain)
    return [memoryview(cast(bytes, array)).cast("B") for array in plain]  # stubs hide the buffer
