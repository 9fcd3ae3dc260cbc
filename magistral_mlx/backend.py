"""All that differs between Metal, CUDA and the CPU. Everything else takes `mx` and `nn` from here.

The CPU backend serves Linux, where this project is tested. Three things differ there:

- MLX multiplies float32 matrices through whatever CBLAS the process has. The one in its wheel is
  the untuned reference; an OpenBLAS loaded earlier takes its place and is about 50 times faster.
- The quantized kernel costs the same for every row, so from a few rows on it is cheaper to
  dequantize a block of the matrix and to multiply by that.
- `mx.fast.scaled_dot_product_attention` writes all scores out, so queries go in blocks.

On Metal and CUDA the quantized and the fused kernels are the fast ones and are called as they are.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

_OPENBLAS = "libopenblas.so.0"


def _openblas_candidates() -> Iterator[str]:
    """The system's OpenBLAS, then the one inside the OpenCV wheel that mistral-common needs."""
    yield _OPENBLAS
    opencv = importlib.util.find_spec("cv2")
    if opencv and opencv.origin:
        wheel = Path(opencv.origin).parent.parent
        yield from sorted(map(str, wheel.glob("opencv_python*.libs/libopenblas*")))


def _load_openblas() -> bool:
    """Make an OpenBLAS the process's CBLAS. It must come before MLX is loaded to be found first."""
    if sys.platform != "linux":
        return False
    for library in _openblas_candidates():
        try:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


_HAS_OPENBLAS = _load_openblas()

import mlx.core as mx
import mlx.nn as nn

from magistral_mlx.quantization import Quantization

__all__ = ["DTYPES", "Backend", "backend", "dequantize", "mx", "nn", "quantized_matmul"]

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

DEQUANTIZED_BYTES = 32 << 20  # a block of a dequantized matrix


@dataclass(frozen=True)
class Backend:
    """What this machine's MLX is good at.

    `dequantize_from_rows` is the number of rows from which dequantizing first is faster, None
    for never. `fused_attention` tells whether attention keeps its scores to itself.
    `prefill_chunk` is the number of prompt tokens that go through the model at once.
    """

    name: Literal["metal", "cuda", "cpu"]
    dtype: mx.Dtype
    dequantize_from_rows: int | None
    fused_attention: bool
    prefill_chunk: int


@cache
def backend() -> Backend:
    """The backend of MLX's default device."""
    if mx.default_device() == mx.Device(mx.DeviceType.cpu):
        rows = 3 if _HAS_OPENBLAS else None
        return Backend("cpu", mx.float32, rows, fused_attention=False, prefill_chunk=512)
    name: Literal["metal", "cuda"] = "metal" if mx.metal.is_available() else "cuda"
    return Backend(name, mx.bfloat16, None, fused_attention=True, prefill_chunk=2048)


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None, scheme: Quantization
) -> mx.array:
    """`x @ W.T` for a quantized W, by whichever way this backend does fastest.

    Args:
        x: (..., in), floating.
        weight, scales, biases: the parts of an (out, in) matrix as `mx.quantize` gives them.

    Returns:
        (..., out) in the dtype of x.
    """
    rows = x.size // x.shape[-1]
    threshold = backend().dequantize_from_rows
    if threshold is None or rows < threshold:
        return mx.quantized_matmul(
            x,
            weight,
            scales,
            biases,
            transpose=True,
            group_size=scheme.group_size,
            bits=scheme.bits,
            mode=scheme.mode,
        )
    out_features = weight.shape[0]
    step = max(1, DEQUANTIZED_BYTES // (x.shape[-1] * x.itemsize))
    if out_features <= step:
        return x @ dequantize(weight, scales, biases, scheme, x.dtype).T
    parts = []
    for start in range(0, out_features, step):
        rows_of = slice(start, start + step)
        block = dequantize(
            weight[rows_of],
            scales[rows_of],
            None if biases is None else biases[rows_of],
            scheme,
            x.dtype,
        )
        parts.append(x @ block.T)
        # The CPU's stream runs far ahead of its work: without this all blocks would be in memory.
        mx.eval(parts[-1])
    return mx.concatenate(parts, axis=-1)


def dequantize(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    scheme: Quantization,
    dtype: mx.Dtype,
) -> mx.array:
    """The (out, in) matrix that the parts stand for, in `dtype`, not rounded on the way."""
    if biases is not None:
        scales, biases = scales.astype(dtype), biases.astype(dtype)
    return mx.dequantize(
        weight,
        scales,
        biases,
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
    ).astype(dtype)
