"""Tensors of a GGUF model as arrays, laid out anew while they are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.gguf.blocks import Bytes, dequantize
from magistral_mlx.checkpoint.gguf.layout import (
    bfloat16_bits,
    deinterleave_heads,
    few_rows,
    form_of,
    lay_out_rows,
)
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.checkpoint.names import interleaved_heads
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import CheckpointError
from magistral_mlx.quantization import Quantization

_READ_BYTES = 2 << 20  # that a thread reads at once
_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


class BlockStore(Protocol):
    """The part of a `Checkpoint` that arrays are read from."""

    @property
    def config(self) -> ModelConfig:
        """The model that they belong to."""

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Tensors by canonical name, as they are laid out."""

    @property
    def blocks(self) -> Mapping[str, StoredTensor]:
        """Quantized matrices by canonical name, as they are stored."""

    @property
    def quantized(self) -> Mapping[str, Quantization]:
        """Schemes of the matrices that are laid out, by canonical name."""


def read_arrays(
    checkpoint: BlockStore, names: Iterable[str], dtype: mx.Dtype, *, compact: bool
) -> dict[str, mx.array]:
    """Canonical name -> array, rows in the file's order.

    Scales and biases are as computed, in float32, or `compact` in the dtype of `SCALES`. A matrix
    of blocks that is not laid out is in `dtype`.

    Memory holds the arrays, and a few rows for each core.

    Raises:
        CheckpointError: a file cannot be read, has become shorter, or holds infinities.
    """
    wanted = list(names)
    found: dict[str, mx.array] = {}
    for name in wanted:
        module = name.rpartition(".")[0]
        blocks = checkpoint.blocks.get(f"{module}.weight")
        if blocks is None:
            found[name] = _plain(checkpoint.tensors[name])
        elif name not in checkpoint.quantized and name.endswith(".weight"):
            found[name] = _dequantized(blocks, dtype)
        elif name not in found:
            parts = _laid_out([blocks], [None], compact)
            found |= {f"{module}.{part}": array for part, array in parts.items()}
    return {name: found[name] for name in wanted}


def read_rows(tensor: StoredTensor, start: int, stop: int) -> Bytes:
    """Rows of a tensor as they are stored; (stop - start, bytes of a row).

    Raises:
        CheckpointError: the file cannot be read, or has become shorter.
    """
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    size = tensor.nbytes // rows
    raw = np.empty((stop - start, size), np.uint8)
    left, offset = raw.data.cast("B"), tensor.offset + start * size
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(offset)
            while left and (got := stream.readinto(left)):
                left = left[got:]
    except OSError as error:
        raise CheckpointError(f"cannot read {tensor.file}: {error.strerror}.") from None
    if left:
        raise CheckpointError(
            f"{tensor.file} has become shorter than its header says. Fetch that file again."
        )
    return raw


def _plain(tensor: StoredTensor) -> mx.array:
    raw = read_rows(tensor, 0, tensor.shape[0] if len(tensor.shape) > 1 else 1)
    return mx.array(raw).reshape(-1).view(_DTYPES[tensor.dtype]).reshape(tensor.shape)


def read_stacks(
    checkpoint: BlockStore, parameters: Mapping[str, Sequence[str]], *, compact: bool
) -> dict[str, mx.array]:
    """Path -> array, of the parameters whose tensors are parts of matrices that are laid out.

    Matrices are stacked by rows, which are in the model's order. They are laid out in their place
    of the stack: nothing is copied there. Scales and biases are as `read_arrays` has them.

    Args:
        parameters: path -> canonical names of the tensors that are stacked.

    Raises:
        CheckpointError: a file cannot be read, has become shorter, or holds infinities.
    """
    found: dict[str, mx.array] = {}
    stacks: dict[tuple[str, ...], dict[str, mx.array]] = {}
    for path, names in parameters.items():
        weights = tuple(f"{name.rpartition('.')[0]}.weight" for name in names)
        if not all(name in checkpoint.blocks and name in checkpoint.quantized for name in weights):
            continue
        if weights not in stacks:
            stack = [checkpoint.blocks[name] for name in weights]
            heads = [interleaved_heads(name, checkpoint.config) for name in weights]
            stacks[weights] = _laid_out(stack, heads, compact)
        found[path] = stacks[weights][names[0].rpartition(".")[2]]
    return found


def _laid_out(
    stack: Sequence[StoredTensor], heads: Sequence[int | None], compact: bool
) -> dict[str, mx.array]:
    """Weight, scales and biases of matrices stacked by rows.

    Args:
        heads: of each matrix, how many are taken from rope pairs to halves; None for the rows in
            the file's order.
    """
    dtype = mx.float16 if compact else mx.float32
    shape = (sum(tensor.shape[0] for tensor in stack), stack[0].shape[1])
    scheme = form_of(stack[0].dtype)
    weight = mx.zeros(scheme.weight_shape(shape), mx.uint32)
    scales, biases = (mx.zeros(scheme.scales_shape(shape), dtype) for _ in range(2))
    mx.eval(weight, scales, biases)
    rooms = [np.array(array, copy=False) for array in (weight, scales, biases)]

    first = 0
    for tensor, count in zip(stack, heads, strict=True):
        unit = tensor.shape[0] // count if count else None
        own = [room[first : first + tensor.shape[0]] for room in rooms]
        _in_pieces(tensor, partial(_lay_out_piece, tensor, unit, own), unit or 1)
        first += tensor.shape[0]
    return {"weight": weight, "scales": scales, "biases": biases}


def _lay_out_piece(
    tensor: StoredTensor, unit: int | None, rooms: list[NDArray[Any]], start: int, stop: int
) -> None:
    raw = deinterleave_heads(read_rows(tensor, start, stop), unit)
    found = [room[start:stop] for room in rooms]
    if not lay_out_rows(tensor.dtype, raw, tensor.shape[1], found):
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} holds infinities, NaNs or scales beyond float16. "
            "Fetch that file again."
        )


def _dequantized(tensor: StoredTensor, dtype: mx.Dtype) -> mx.array:
    """A quantized matrix as floats of `dtype`."""
    shape = (tensor.shape[0], tensor.shape[1])
    array = mx.zeros(shape, mx.uint16 if dtype == mx.bfloat16 else dtype)
    mx.eval(array)
    room = np.array(array, copy=False)

    def work(start: int, stop: int) -> None:
        raw, found = read_rows(tensor, start, stop), room[start:stop]
        for few in few_rows(len(raw), shape[1]):
            weights = dequantize(tensor.dtype, raw[few])
            if not np.isfinite(weights).all():
                raise CheckpointError(
                    f"{tensor.name} in {tensor.file} holds infinities or NaNs. "
                    "Fetch that file again."
                )
            # NumPy has no bfloat16: its bits are the upper half of float32's.
            found[few] = bfloat16_bits(weights) if dtype == mx.bfloat16 else weights

    _in_pieces(tensor, work, 1)
    return array.view(dtype) if dtype == mx.bfloat16 else array


def _in_pieces(tensor: StoredTensor, work: Callable[[int, int], None], unit: int) -> None:
    """Call `work` with the first and last of the rows that are read at once, a multiple of `unit`,
    in threads."""
    rows = tensor.shape[0]
    step = max(unit, _READ_BYTES * rows // tensor.nbytes // unit * unit)
    starts = range(0, rows, step)
    stops = (min(start + step, rows) for start in starts)
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(work, starts, stops))
