"""FP8 matrices as arrays, dequantized a few rows at a time."""

from __future__ import annotations

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.fp8 import scale_block
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.errors import CheckpointError

_PIECE = 4 << 20  # weights that are dequantized at once


def dequantize_fp8(
    weight: StoredTensor, codes: mx.array, scales: mx.array, dtype: mx.Dtype
) -> mx.array:
    """Dequantize an FP8 matrix (out, in) a few rows at a time, into an array of `dtype`.

    Products are computed in float32. Memory holds the result, the codes, and some rows in float32.

    Raises:
        CheckpointError: a code or a scale is NaN or infinite.
    """
    rows, columns = weight.shape
    block = scale_block(weight.shape, scales.shape)
    assert block is not None
    scales = scales.astype(mx.float32).reshape(-(-rows // block[0]), -1)
    finite = mx.all(mx.isfinite(scales)) & mx.all((codes & 0x7F) != 0x7F)
    if not finite.item():
        raise CheckpointError(
            f"{weight.name} in {weight.file} holds infinities or NaNs. Fetch that file again; if "
            "they stay, the checkpoint itself is damaged."
        )
    found = mx.zeros(weight.shape, dtype)
    step = max(1, _PIECE // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        of_row = scales[mx.arange(start, stop) // block[0]]
        factors = mx.repeat(of_row, block[1], axis=1)[:, :columns]
        piece = mx.from_fp8(codes[start:stop], mx.float32) * factors
        found[start:stop] = piece.astype(dtype)
        mx.eval(found)
    return found
