"""Differences between Metal, CUDA and the CPU. All other modules import `mx` and `nn` from here.

The CPU backend is for Linux, where this project is tested, and for Macs without a GPU for Metal,
such as virtual ones. Five things differ there:

- MLX multiplies float32 matrices with the process's CBLAS. The one in its wheel for Linux is the
  untuned reference; an OpenBLAS loaded earlier replaces it and is about 50 times faster.
- The quantized kernel costs the same for every row, so from a few rows on it is cheaper to
  dequantize a block of the matrix and to multiply by that.
- That kernel and the dequantizing one run on one thread per stream, so the rows of a matrix are
  distributed over as many streams as there are cores.
- `mx.fast.scaled_dot_product_attention` materializes all scores, so queries are split into blocks.
- MLX frees each buffer at once, and glibc returns large ones to the system, which maps the next one
  page by page: that takes longer than filling it, unless malloc is told to keep some.

On Metal and CUDA the quantized and the fused kernels are the fast ones and are called directly.

The file is longer than others because nothing else knows which backend computes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

_OPENBLAS = "libopenblas.so.0"


def _openblas_candidates() -> Iterator[str]:
    """Yield the system's OpenBLAS, then the one in the OpenCV wheel that mistral-common needs."""
    yield _OPENBLAS
    opencv = importlib.util.find_spec("cv2")
    if opencv and opencv.origin:
        wheel = Path(opencv.origin).parent.parent
        yield from sorted(map(str, wheel.glob("opencv_python*.libs/libopenblas*")))


def _has_fast_blas() -> bool:
    """Whether the CPU multiplies matrices fast; loads an OpenBLAS for that on Linux.

    On macOS MLX's CPU backend uses Accelerate (`MLX_BUILD_ACCELERATE` in MLX's CMakeLists.txt). On
    Linux an OpenBLAS becomes the process's CBLAS if it is loaded before MLX.
    """
    if sys.platform == "darwin":
        return True
    if sys.platform != "linux":
        return False
    for library in _openblas_candidates():
        try:
            ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


_HAS_FAST_BLAS = _has_fast_blas()

import mlx.core as mx
import mlx.nn as nn

from magistral_mlx.quantization import Quantization

if os.environ.get("MAGISTRAL_MLX_DEVICE") == "cpu":  # the tests' on a Mac, as on Linux
    mx.set_default_device(mx.cpu)

__all__ = [
    "DTYPES",
    "Backend",
    "backend",
    "dequantize",
    "dispatch_limit",
    "free_memory",
    "keep_dispatches_short",
    "mx",
    "nn",
    "quantized_matmul",
    "reuse_memory",
]

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}

_DEQUANTIZE_FROM = 5  # rows
_MAPPED_BYTES = 32 << 20  # size from which glibc maps each buffer separately; its largest setting
_KEPT_BYTES = 256 << 20  # free bytes at the end of the heap that malloc keeps
_THREAD_BYTES = 64 << 20  # bytes malloc keeps per thread, the size of a thread's heap
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # of malloc.h
DEQUANTIZED_BYTES = _MAPPED_BYTES - (4 << 10)  # a block of a dequantized matrix
_PART_BYTES = 256 << 10  # of a packed matrix; smaller parts are not worth another stream


@dataclass(frozen=True)
class Backend:
    """Properties of MLX's backend on this machine.

    dequantize_from_rows: number of rows from which dequantizing first is faster; None for never.
    fused_attention: attention does not materialize scores.
    packed_attention: a few queries attend to quantized tokens as they are stored. MLX's products on
        CUDA refuse arrays with spare capacity between heads (`is_last_2_dims_row_contiguous` in
        mlx/backend/cuda/quantized/qmm/qmm.cu, commit 846d176), so there they are dequantized.
    prefill_chunk: number of prompt tokens that go through the model at once.
    few_rows: number of rows up to which a pass is one graph, and projections of the same input are
        one product.
    dispatch_flops: largest number of floating-point operations of one call of attention on a chip
        of unknown speed (`dispatch_limit`); None for no limit.
    prefers_float16: bfloat16 is emulated, so that float16 is faster.
    wide_products: a quantized product of a few rows reads the matrix once for all of them.
    """

    name: Literal["metal", "cuda", "cpu"]
    dtype: mx.Dtype
    dequantize_from_rows: int | None
    fused_attention: bool
    prefill_chunk: int
    few_rows: int
    packed_attention: bool = False
    dispatch_flops: int | None = None
    prefers_float16: bool = False
    wide_products: bool = True

    @property
    def pass_costs(self) -> tuple[tuple[int, float], ...]:
        """(rows, cost) of a pass, relative to a pass of one row; more rows do not pay.

        Conservative estimates; `magistral-mlx bench` measures them for a model. On the CPU each
        row of a quantized matrix product costs the same, until the matrix is dequantized from five
        rows on. On a GPU the matrix is read once for a few rows, but with kernels that are further
        from the memory's bandwidth.
        """
        if self.name == "cpu":
            return _CPU_COSTS if self.dequantize_from_rows else _LINEAR_COSTS
        return _GPU_COSTS if self.wide_products else _GPU_COSTS_BEFORE_M3


_CPU_COSTS = ((1, 1.0), (4, 4.0), (5, 4.8), (32, 5.5))
_LINEAR_COSTS = ((1, 1.0), (8, 8.0))
_GPU_COSTS = ((1, 1.0), (2, 1.3), (4, 1.9), (8, 3.2), (16, 4.0), (32, 5.0))
# From 6 rows on these chips multiply tiles of 32 rows (`get_qmv_batch_limit`, lines 104 to 121 of
# mlx/backend/metal/quantized.cpp in commit 846d176): computed, 2 x 32 operations a weight over 10.4
# TFLOPS against its 4.5 bits over 400 GB/s are 4.4 on an M1 Max.
_GPU_COSTS_BEFORE_M3 = ((1, 1.0), (2, 1.3), (4, 1.9), (5, 2.3), (6, 4.5), (32, 5.5))


@cache
def backend() -> Backend:
    """The backend of MLX's default device."""
    if mx.default_device() == mx.Device(mx.DeviceType.cpu):
        rows = _DEQUANTIZE_FROM if _HAS_FAST_BLAS else None
        few = _DEQUANTIZE_FROM - 1
        return Backend(
            "cpu", mx.float32, rows, fused_attention=False, prefill_chunk=512, few_rows=few
        )
    gpu = Backend("cuda", mx.bfloat16, None, fused_attention=True, prefill_chunk=2048, few_rows=64)
    if not mx.metal.is_available():
        return gpu
    architecture = str(mx.device_info()["architecture"])
    return replace(
        gpu,
        name="metal",
        packed_attention=True,
        dispatch_flops=dispatch_flops(architecture),
        prefers_float16=emulates_bfloat16(architecture),
        wide_products=wide_products(architecture),
    )


# macOS kills GPU work that keeps the screen waiting for seconds ("Impacting Interactivity"). One
# layer's attention of 2,048 queries to 131,072 keys takes an M1 two seconds in a single dispatch.
_DISPATCH_FLOPS = 4 * 2048 * 32_768 * 32 * 128  # 2,048 queries to 32,768 keys in Magistral's layer
# By the last letter of the architecture, as in "applegpu_g13s"; those of small chips are not here.
_LARGER_CHIPS = {"s": 2, "c": 4, "d": 4}


def dispatch_flops(architecture: str) -> int:
    """Limit of one call of attention on a chip, by Metal's name of its architecture."""
    return _DISPATCH_FLOPS * _LARGER_CHIPS.get(architecture[-1:], 1)


# macOS has killed work of one to two seconds.
DISPATCH_SECONDS = 0.5
_attention_flops: float | None = None  # per second


def keep_dispatches_short(flops_per_second: float | None) -> None:
    """Limit one call of attention to `DISPATCH_SECONDS` at a speed that was measured here; None: to
    what is right for its kind of chip."""
    global _attention_flops
    _attention_flops = flops_per_second


def dispatch_limit() -> int | None:
    """Largest number of floating-point operations of one call of attention; None for no limit."""
    limit = backend().dispatch_flops
    if limit is None or _attention_flops is None:
        return limit
    return int(DISPATCH_SECONDS * _attention_flops)


def emulates_bfloat16(architecture: str) -> bool:
    """Whether a chip, by Metal's name of its architecture, emulates bfloat16: M1 and M2."""
    return _generation(architecture) in (13, 14)


def wide_products(architecture: str) -> bool:
    """Whether MLX has `qmv_wide` for a chip, by Metal's name of its architecture: from M3 on
    (`use_qmv_wide`, line 538 of mlx/backend/metal/quantized.cpp in commit 846d176)."""
    generation = _generation(architecture)
    return generation is None or generation >= 15


def _generation(architecture: str) -> int | None:
    """The generation of a chip, by Metal's name of its architecture; None if it names none.

    "applegpu_g13s" is an M1 Max, "applegpu_g14g" an M2, and the M3 begins with g15
    (`get_qmv_batch_limit` in mlx/backend/metal/quantized.cpp, line 79 of commit 846d176, reads it
    from there too).
    """
    digits = architecture.rpartition("_g")[2][:2]
    return int(digits) if digits.isdigit() else None


def device_error_advice(error: str) -> str:
    """Advice on an error that MLX raised while the device worked."""
    if "Impacting Interactivity" in error:
        return (
            "macOS stopped the GPU because its work kept the screen waiting: close other programs "
            "that use the GPU, or use a smaller context, and ask again."
        )
    return "The model can be asked again; a shorter prompt or a smaller context needs less memory."


def quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None, scheme: Quantization
) -> mx.array:
    """`x @ W.T` for a quantized W, in the fastest way of this backend.

    Args:
        x: (..., in), floating.
        weight, scales, biases: the parts of an (out, in) matrix as `mx.quantize` returns them.

    Returns:
        (..., out) in the dtype of x.
    """
    if backend().name != "cpu":
        return _quantized_matmul(x, weight, scales, biases, scheme)
    rows = x.size // x.shape[-1]
    threshold = backend().dequantize_from_rows
    if threshold is None or rows < threshold:
        multiply = partial(_quantized_matmul, x)
        return _joined(_in_parts(multiply, weight, scales, biases, scheme))
    # Evaluate block by block, and x before the first: the CPU's stream is built far ahead of its
    # execution, and a whole layer's dequantized matrices would be in memory at once.
    mx.eval(x)
    out_features = weight.shape[0]
    blocks = -(-out_features * x.shape[-1] * x.itemsize // DEQUANTIZED_BYTES)
    parts, step = [], -(-out_features // blocks)
    for start in range(0, out_features, step):
        block = _rows_of(slice(start, start + step), weight, scales, biases)
        parts.append(_dequantized_matmul(x, *block, scheme))
        mx.eval(parts[-1])
    return _joined(parts)


def _quantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None, scheme: Quantization
) -> mx.array:
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


def _dequantized_matmul(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None, scheme: Quantization
) -> mx.array:
    """Dequantize on all streams, then multiply, which uses all cores by itself."""
    dense = _in_parts(partial(dequantize, dtype=x.dtype), weight, scales, biases, scheme)
    return _joined([x @ part.T for part in dense])


def _joined(parts: list[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=-1)


RowFunction = Callable[[mx.array, mx.array, mx.array | None, Quantization], mx.array]


def _in_parts(
    work: RowFunction,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    scheme: Quantization,
) -> list[mx.array]:
    """Apply `work` to parts of W's rows, one per stream; the split does not change results."""
    parts, rows = _parts(weight), weight.shape[0]
    found = []
    for part in range(parts):
        some = slice(rows * part // parts, rows * (part + 1) // parts)
        with mx.stream(_other_streams()[part - 1]) if part else nullcontext():
            found.append(work(*_rows_of(some, weight, scales, biases), scheme))
    return found


def _rows_of(
    some: slice, weight: mx.array, scales: mx.array, biases: mx.array | None
) -> tuple[mx.array, mx.array, mx.array | None]:
    return weight[some], scales[some], None if biases is None else biases[some]


def _parts(weight: mx.array) -> int:
    """Number of streams that pay for a matrix of this size."""
    return max(1, min(_cores(), weight.nbytes // _PART_BYTES, weight.shape[0]))


@cache
def _other_streams() -> tuple[mx.ThreadLocalStream, ...]:
    """One stream per core besides the default one; each thread has its own instances."""
    return tuple(mx.new_thread_local_stream(mx.cpu) for _ in range(_cores() - 1))


@cache
def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def dequantize(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    scheme: Quantization,
    dtype: mx.Dtype,
) -> mx.array:
    """Dequantize an (out, in) matrix to `dtype`, without intermediate rounding."""
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


# Memory


def reuse_memory() -> None:
    """Make malloc keep freed memory for reuse, where mapping it again would be slow.

    It applies to the whole process from then on.
    """
    if backend().name == "cpu" and (malloc := _glibc()):
        malloc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        malloc.mallopt(_M_TOP_PAD, _THREAD_BYTES)
        malloc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def free_memory() -> None:
    """Return freed memory to the system; glibc keeps 64 MiB per thread nevertheless."""
    mx.clear_cache()
    if backend().name == "cpu" and (malloc := _glibc()):
        malloc.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is the GNU one."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
