"""The part of a checkpoint that one rank holds: which tensors, and which bytes of them.

Query, key, value, gate and up are divided by rows, o and down by columns: the rows of one of them
meet the same columns of the next. Packed words, scales and biases of a quantized matrix are divided
alike, so that no group is cut.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from io import FileIO
from typing import Literal

import numpy as np

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.header import DTYPE_BYTES, StoredTensor
from magistral_mlx.checkpoint.names import EMBEDDING, HEAD, LANGUAGE
from magistral_mlx.errors import CheckpointError, InvalidOption
from magistral_mlx.split import Split, divided_config

_LAYER = re.compile(rf"({re.escape(LANGUAGE)}model\.layers\.)(\d+)(\..*)")
_BY_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_BY_COLUMNS = ("o_proj", "down_proj")
_NORM = f"{LANGUAGE}model.norm.weight"
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14  # of each file, in a digest
_DTYPES = {
    "F32": (np.float32, None),
    "F16": (np.float16, None),
    "BF16": (np.uint16, mx.bfloat16),
    "U32": (np.uint32, None),
    "U8": (np.uint8, None),
    "F8_E4M3": (np.uint8, None),
}


@dataclass(frozen=True)
class TensorPart(StoredTensor):
    """A part of a stored tensor: of `whole`, the rows or columns `start` to `stop`.

    `shape` and `nbytes` are those of the part.
    """

    whole: StoredTensor
    axis: Literal[0, 1]
    start: int
    stop: int


def part_of(checkpoint: Checkpoint, split: Split) -> Checkpoint:
    """Return the part of a checkpoint that a rank loads.

    It has the part's configuration, shapes and bytes, so memory is planned for it as for a whole
    model (`loaded_weights` in magistral_mlx/memory/peak.py).

    Raises:
        InvalidOption: the model cannot be divided like this.
    """
    if split.whole:
        return checkpoint
    config = divided_config(checkpoint.config, split)
    layers = split.layers(checkpoint.config.text.num_hidden_layers)
    names = {name: held for name in checkpoint.tensors if (held := _held_as(name, split, layers))}
    tensors = {held: _divided(checkpoint, name, split) for name, held in names.items()}
    schemes = {names[n]: scheme for n, scheme in checkpoint.quantized.items() if n in names}
    return replace(
        checkpoint,
        config=config,
        tensors=tensors,
        quantized=schemes,
        blocks={names[n]: one for n, one in checkpoint.blocks.items() if n in names},
        fp8_scales={names[n]: one for n, one in checkpoint.fp8_scales.items() if n in names},
        split=split,
    )


def content_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of a whole checkpoint's configuration, headers and samples of its content.

    Copies of the same files on different machines have the same one.

    Raises:
        CheckpointError: a file cannot be read.
    """
    digest = hashlib.blake2b(repr(checkpoint.config).encode(), digest_size=16)
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape} {tensor.offset} ".encode())
    try:
        for file in checkpoint.files:
            size = file.stat().st_size
            digest.update(f"{file.name} {size} ".encode())
            with file.open("rb") as stream:
                for n in range(_SAMPLES):
                    stream.seek(size * n // _SAMPLES)
                    digest.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}.") from None
    return digest.hexdigest()


def _held_as(name: str, split: Split, layers: range) -> str | None:
    """The name of a tensor within the rank's part; None if the rank does not hold it."""
    layer = _LAYER.fullmatch(name)
    if layer:
        number = int(layer[2])
        return f"{layer[1]}{number - layers.start}{layer[3]}" if number in layers else None
    ends = name.startswith((EMBEDDING, HEAD)) or name == _NORM or not name.startswith(LANGUAGE)
    return name if split.has_ends or not ends else None


def _divided(checkpoint: Checkpoint, name: str, split: Split) -> StoredTensor:
    """The tensor, or the part of it that the rank holds."""
    tensor = checkpoint.tensors[name]
    module = name.split(".")[-2] if "." in name else ""
    if split.kind != "tensor" or not _LAYER.fullmatch(name):
        return tensor
    axis: Literal[0, 1]
    if module in _BY_ROWS:
        axis = 0
    elif module in _BY_COLUMNS:
        axis = 1
    else:
        return tensor
    length = tensor.shape[axis]
    if length % split.size:
        raise InvalidOption(
            f"{tensor.name} has {length} "
            f"{'rows' if axis == 0 else 'columns of packed words or groups'}, which "
            f"{split.size} machines cannot share; use the split pipeline."
        )
    cut = split.cut(length)
    return _part(tensor, axis, cut.start, cut.stop)


def _part(tensor: StoredTensor, axis: Literal[0, 1], start: int, stop: int) -> TensorPart:
    shape = [*tensor.shape]
    shape[axis] = stop - start
    return TensorPart(
        tensor.name,
        tensor.file,
        tensor.dtype,
        tuple(shape),
        tensor.offset,
        tensor.nbytes // tensor.shape[axis] * (stop - start),
        whole=tensor,
        axis=axis,
        start=start,
        stop=stop,
    )


def _fill(stream: FileIO, place: int, buffer: memoryview) -> None:
    """Read from `place` on until `buffer` is full. Raises EOFError where the file ends before."""
    stream.seek(place)
    while buffer:
        count = stream.readinto(buffer)
        if not count:
            raise EOFError
        buffer = buffer[count:]


def whole_of(tensor: StoredTensor) -> StoredTensor:
    """Return the stored tensor that a part is of, or one that is no part."""
    return tensor.whole if isinstance(tensor, TensorPart) else tensor


def take_part(array: mx.array, tensor: StoredTensor) -> mx.array:
    """Take the part of a whole tensor's array that `tensor` is."""
    if not isinstance(tensor, TensorPart):
        return array
    start, stop = tensor.start, tensor.stop
    return array[start:stop] if tensor.axis == 0 else array[:, start:stop]


def rows_part(tensor: StoredTensor, start: int, stop: int) -> TensorPart:
    """Return the part of a stored tensor that is the rows `start` to `stop`."""
    return _part(tensor, 0, start, stop)


def read_part(part: TensorPart) -> mx.array:
    """Read the bytes of a part, and no others of its file.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter.
    """
    kind, viewed = _DTYPES[part.dtype]
    row = part.whole.nbytes // part.whole.shape[0]
    item = DTYPE_BYTES[part.dtype]
    values = np.empty(part.shape, kind)
    buffer = values.reshape(-1).view(np.uint8).data
    try:
        with part.file.open("rb", buffering=0) as stream:
            if part.axis == 0:
                _fill(stream, part.offset + part.start * row, buffer)
            else:
                length = (part.stop - part.start) * item
                for n in range(part.shape[0]):
                    place = part.offset + n * row + part.start * item
                    _fill(stream, place, buffer[n * length : (n + 1) * length])
    except OSError as error:
        raise CheckpointError(f"cannot read {part.file}: {error.strerror}.") from None
    except EOFError:
        raise CheckpointError(
            f"{part.file} has become shorter since it was opened. Fetch or convert it again."
        ) from None
    array = mx.array(values)
    return array if viewed is None else array.view(viewed)
