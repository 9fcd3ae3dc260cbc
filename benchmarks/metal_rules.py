"""Kernels that MLX's Metal backend chooses, and the bytes that they move, by shapes and strides.

The rules are those of MLX's commit 846d176; a comment names the file and the line of each, in
mlx/backend/metal unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

# Quantized products


@dataclass(frozen=True)
class Kernel:
    """A kernel of a quantized product.

    rows: that it gets. keys: that a threadgroup walks through. parts: of the keys, each with a
    result of its own, which another kernel adds up if there are several.
    """

    name: str
    rows: int
    threadgroups: int
    keys: int
    parts: int = 1


def quantized_kernel(x: Sequence[int], out: Sequence[int], *, transpose: bool) -> Kernel:
    """The kernel for shapes of input and output on an M1, whose limits are the lowest."""
    rows, keys, width = x[-2], x[-1], out[-1]
    batch = prod(out[:-2])
    # quantized.cpp, lines 108 to 117
    limit = (14 if keys <= 2048 and width <= 2048 else 6) if transpose else 4
    if rows >= limit:  # line 1807
        tiles = -(-width // 32) * -(-rows // 32)  # lines 1062 to 1067
        parts = _parts_of_keys(keys, tiles) if transpose and batch == 1 else 1
        name = "qmm_n" if not transpose else "qmm_t_splitk" if parts > 1 else "qmm_t"
        return Kernel(name, rows, tiles * batch * parts, keys // parts, parts)
    if transpose:
        return Kernel("qmv", rows, rows * -(-width // 8) * batch, keys)
    if keys < 1024:  # line 1850
        return Kernel("qvm", rows, rows * -(-width // 64) * batch, keys)
    parts = 32 if keys > 8192 else 8  # line 643
    groups = rows * -(-width // 64) * batch * parts
    return Kernel("qvm_split_k", rows, groups, -(-keys // parts), parts)


def _parts_of_keys(keys: int, tiles: int) -> int:
    """Parts of `qmm_splitk`, in groups of 64 (lines 1130 to 1145)."""
    parts = min(max(1, 512 // tiles), keys // 64)
    while keys % (parts * 64):
        parts -= 1
    return parts


# Arrays


@dataclass(frozen=True)
class Array:
    """An array of a graph as it lies in memory. strides: in elements."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    @classmethod
    def fresh(cls, shape: Sequence[int], itemsize: int) -> Array:
        """A row-contiguous array."""
        strides, step = [], 1
        for size in reversed(shape):
            strides.append(step)
            step *= size
        return cls(tuple(shape), tuple(reversed(strides)), itemsize)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.itemsize

    @property
    def touched(self) -> int:
        """Bytes in memory that the array covers; those of a broadcast axis once."""
        sizes = (size for size, step in zip(self.shape, self.strides, strict=True) if step)
        return prod(sizes) * self.itemsize

    @property
    def row_contiguous(self) -> bool:
        return self._strides_of_rows(self.shape)

    @property
    def matrix_contiguous(self) -> bool:
        """`ensure_row_contiguous_matrix`, quantized.cpp, lines 65 to 83."""
        if len(self.shape) < 2:
            return self.row_contiguous
        return self.strides[-1] == 1 and self.strides[-2] == self.shape[-1]

    def _strides_of_rows(self, shape: Sequence[int]) -> bool:
        step = 1
        for size, stride in zip(reversed(shape), reversed(self.strides), strict=True):
            if size > 1 and stride != step:
                return False
            step *= size
        return True

    def reshaped(self, shape: Sequence[int]) -> Array | None:
        """The view in another shape; None if it takes a copy (`prepare_reshape`,
        mlx/backend/common/common.cpp)."""
        if prod(shape) == 0 or self.row_contiguous:
            return Array.fresh(shape, self.itemsize)
        old = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n > 1]
        merged: list[tuple[int, int]] = []  # axes that lie behind one another are one
        for size, stride in old:
            if merged and merged[-1][1] == size * stride:
                merged[-1] = (merged[-1][0] * size, stride)
            else:
                merged.append((size, stride))
        strides, place = [], 0
        left, step = merged[0] if merged else (1, 1)
        step *= left
        for size in shape:
            if size == 1:
                strides.append(step)
                continue
            if left == 1:
                place += 1
                left, step = merged[place]
                step *= left
            if left % size:
                return None
            left //= size
            step //= size
            strides.append(step)
        return Array(tuple(shape), tuple(strides), self.itemsize)


@dataclass
class Work:
    """The work of one operation: dispatches by kernel, bytes and floating-point operations.

    read, written: of the kernel itself. copied: read and written by copies before or beside it.
    """

    kernels: list[str]
    read: int = 0
    written: int = 0
    copied: int = 0
    flops: float = 0.0

    def copy(self, x: Array) -> None:
        """Add a copy of x."""
        self.kernels.append("copy")
        self.copied += x.touched + x.nbytes


VIEWS = ("ExpandDims", "Squeeze", "Slice", "Split", "Transpose", "Broadcast", "Reshape", "Flatten",
         "Unflatten", "StopGradient", "AsStrided")  # fmt: skip


def view(name: str, arguments: Sequence[Any], x: Array, outs: Sequence[Sequence[int]]) -> list[Any]:
    """The arrays that a view of x makes; None for one that takes a copy."""
    if name in ("Reshape", "Flatten", "Unflatten", "ExpandDims", "Squeeze"):
        return [x.reshaped(outs[0])]
    if name == "Transpose":
        axes = arguments[0]
        return [Array(tuple(outs[0]), tuple(x.strides[n] for n in axes), x.itemsize)]
    if name == "Slice":
        steps = arguments[2]
        strides = tuple(s * step for s, step in zip(x.strides, steps, strict=True))
        return [Array(tuple(outs[0]), strides, x.itemsize)]
    if name == "AsStrided":  # of a row-contiguous array (mlx/backend/common/common.cpp)
        return [Array(tuple(outs[0]), tuple(arguments[1]), x.itemsize)]
    if name == "Broadcast":
        more = len(outs[0]) - len(x.shape)
        sizes = (1,) * more + x.shape
        strides = (0,) * more + x.strides
        kept = tuple(
            0 if a == 1 and b > 1 else s for a, b, s in zip(sizes, outs[0], strides, strict=True)
        )
        return [Array(tuple(outs[0]), kept, x.itemsize)]
    return [Array(tuple(shape), x.strides, x.itemsize) for shape in outs]  # Split


def work_of(
    name: str, arguments: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]
) -> Work:
    """The work of a primitive that is not a view."""
    rule = _RULES.get(name, _elementwise)
    return rule(name, arguments, inputs, outs)


def _elementwise(_: str, __: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]) -> Work:
    read, written = sum(x.touched for x in inputs), sum(x.nbytes for x in outs)
    return Work(["elementwise"], read, written, 0, sum(prod(x.shape) for x in outs))


def _last_axis(name: str, _: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]) -> Work:
    """Norms and softmax: the last axis must be contiguous (normalization.cpp, line 20;
    softmax.cpp, line 25)."""
    work = _elementwise(name, _, inputs, outs)
    work.kernels = [name]
    x = inputs[0]
    rows_apart = len(x.shape) > 1 and x.shape[-2] > 1 and x.strides[-2] not in (0, x.shape[-1])
    if x.shape and (x.strides[-1] != 1 or rows_apart):
        work.copy(x)
    work.flops *= 4
    return work


def _rope(name: str, _: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]) -> Work:
    """rope.cpp, lines 52 to 90."""
    work = _elementwise(name, _, inputs[:1], outs)
    work.kernels = ["rope"]
    x = inputs[0]
    _, heads, length, width = x.shape
    leading = [n for n, size in enumerate(x.shape[:-3]) if size > 1]
    swapped = (
        x.strides[0] == length * heads * width
        and x.strides[1] == width
        and x.strides[2] == heads * width
    )
    if not (x.row_contiguous or not leading or swapped):
        work.copy(x)
    work.flops *= 6
    return work


def _quantized(
    name: str, arguments: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]
) -> Work:
    """`QuantizedMatmul::eval_gpu`, quantized.cpp, lines 1782 to 1858."""
    x, out = inputs[0], outs[0]
    transpose = bool(arguments[3])
    together = len(inputs[1].shape) == 2 and x.row_contiguous  # line 1801
    shapes = ((1, prod(x.shape[:-1]), x.shape[-1]), (1, prod(out.shape[:-1]), out.shape[-1]))
    shape, out_shape = shapes if together else (x.shape, out.shape)
    kernel = quantized_kernel(shape, out_shape, transpose=transpose)
    flops = 2.0 * prod(out.shape) * x.shape[-1]
    work = Work([kernel.name], sum(a.touched for a in inputs), out.nbytes, 0, flops)
    if kernel.parts > 1:  # line 640
        work.kernels.append("sum of parts")
        work.written += kernel.parts * out.nbytes
        work.read += kernel.parts * out.nbytes
    for array in inputs:
        if not array.matrix_contiguous:
            work.copy(array)
    return work


def _matmul(name: str, _: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]) -> Work:
    """A matrix is taken as it is if rows or columns are contiguous (`check_transpose`,
    matmul.cpp)."""
    a, b, out = inputs[0], inputs[1], outs[0]
    flops = 2.0 * prod(out.shape) * a.shape[-1]
    kernel = "gemv" if a.shape[-2] == 1 or b.shape[-1] == 1 else "gemm"
    work = Work([kernel], a.touched + b.touched, out.nbytes, 0, flops)
    for x in (a, b):
        if 1 not in x.strides[-2:] and prod(x.shape[-2:]) > 1:
            work.copy(x)
    return work


def _attention(
    _: str, arguments: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]
) -> Work:
    """`ScaledDotProductAttention`, scaled_dot_product_attention.cpp, lines 769 to 916."""
    (causal,), (q, k, v) = arguments, inputs[:3]
    batch, heads, length, width = q.shape
    keys = k.shape[2]
    seen = keys * length - (length * (length - 1) // 2 if causal else 0)
    flops = 4.0 * batch * heads * seen * width
    work = Work([], sum(x.touched for x in inputs), outs[0].nbytes, 0, flops)
    if length > 8:
        work.kernels.append("steel_attention")
        for x in (q, k, v):
            if x.strides[-1] != 1:
                work.copy(x)
        return work
    single = 1 if batch == 1 else 0
    turned = q.strides[2] == width * q.shape[single] and q.strides[single] == width
    if not (q.row_contiguous or (1 in (batch, heads) and q.strides[3] == 1 and turned)):
        work.copy(q)
    for x in (k, v):
        apart = 1 not in x.shape[:2] and x.strides[0] != x.strides[1] * x.shape[1]
        if x.strides[-1] != 1 or apart:
            work.copy(x)
    if keys >= 4096 and k.shape[1] < heads:  # line 872; large chips from 1,024 keys on
        work.kernels += ["sdpa_vector_2pass_1", "sdpa_vector_2pass_2"]
        parts = 128 * batch * heads * length * (width + 2) * 4  # lines 487 to 516
        work.read += parts
        work.written += parts
    else:
        work.kernels.append("sdpa_vector")
    return work


def _contiguous_first(
    name: str, _: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]
) -> Work:
    """Quantize, dequantize and Hadamard want row-contiguous inputs (quantized.cpp, line 249;
    hadamard.cpp, line 188)."""
    work = _elementwise(name, _, inputs, outs)
    work.kernels = [name.lower()]
    for x in inputs:
        if not x.row_contiguous:
            work.copy(x)
    return work


def _concatenate(_: str, __: Sequence[Any], inputs: Sequence[Array], ___: Sequence[Array]) -> Work:
    """A copy for each part (mlx/backend/gpu/slicing.cpp, `concatenate_gpu`)."""
    work = Work([])
    for x in inputs:
        work.copy(x)
    return work


def _update(
    _: str, arguments: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]
) -> Work:
    """Written in place if nothing else refers to the array (`SliceUpdate::eval_gpu`,
    mlx/backend/gpu/primitives.cpp); `arguments[0]` tells."""
    work = Work(["slice update"], inputs[1].touched, inputs[1].nbytes)
    if not arguments[0]:
        work.copy(inputs[0])
    return work


def _gather(_: str, __: Sequence[Any], inputs: Sequence[Array], outs: Sequence[Array]) -> Work:
    return Work(["gather"], sum(x.touched for x in inputs[1:]) + outs[0].nbytes, outs[0].nbytes)


def _made(_: str, __: Sequence[Any], ___: Sequence[Array], outs: Sequence[Array]) -> Work:
    return Work(["arange"], 0, sum(x.nbytes for x in outs))


def _copied(_: str, __: Sequence[Any], inputs: Sequence[Array], ___: Sequence[Array]) -> Work:
    work = Work([])
    work.copy(inputs[0])
    return work


def _contiguous(_: str, __: Sequence[Any], inputs: Sequence[Array], ___: Sequence[Array]) -> Work:
    work = Work([])
    if not inputs[0].row_contiguous:
        work.copy(inputs[0])
    return work


Rule = Callable[[str, Sequence[Any], Sequence[Array], Sequence[Array]], Work]
_RULES: dict[str, Rule] = {
    "QuantizedMatmul": _quantized,
    "Matmul": _matmul,
    "AddMM": _matmul,
    "attention": _attention,
    "rms_norm": _last_axis,
    "Softmax": _last_axis,
    "LogSumExp": _last_axis,
    "rope": _rope,
    "Quantize": _contiguous_first,
    "dequantize": _contiguous_first,
    "Hadamard": _contiguous_first,
    "Concatenate": _concatenate,
    "SliceUpdate": _update,
    "Gather": _gather,
    "Arange": _made,
    "Copy": _copied,
    "Contiguous": _contiguous,
    "Reshape": _copied,
    "Flatten": _copied,
    "Unflatten": _copied,
}
