"""Loading of a checkpoint's weights into the model.

A parameter of the model is one tensor of the checkpoint, or several concatenated by rows. Arrays
are read and laid out by batches, so memory holds what has been loaded and one batch of stored
tensors, never the whole checkpoint twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from magistral_mlx.backend import backend, mx, reuse_memory
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.fp8_load import dequantize_fp8
from magistral_mlx.checkpoint.gguf.load import read_arrays, read_stacks
from magistral_mlx.checkpoint.names import (
    INTERLEAVED,
    LANGUAGE,
    head_prefix,
    interleaved_heads,
    is_channels_last,
)
from magistral_mlx.checkpoint.part import TensorPart, read_part, take_part, whole_of
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import CheckpointError
from magistral_mlx.model.linear import quantize_modules, stored_as
from magistral_mlx.model.magistral import MagistralModel

_log = logging.getLogger("magistral_mlx")

OnProgress = Callable[[int, int], None]  # bytes loaded, bytes in all

_BATCH_BYTES = 128 << 20  # stored bytes that are read before they are laid out
_LARGE_SCALES = 512 << 20  # bytes that casting all scales may cost


def load_model(
    checkpoint: Checkpoint,
    dtype: mx.Dtype | None = None,
    on_progress: OnProgress | None = None,
    build: Callable[[ModelConfig, mx.Dtype], MagistralModel] = MagistralModel,
) -> MagistralModel:
    """Load the decoder. The vision tower stays on disk until `load_vision`.

    Args:
        dtype: the compute dtype; None is the backend's default.
        on_progress: called with the bytes loaded so far and in all.
        build: makes the model without weights.

    Raises:
        CheckpointError: a file cannot be read to its end.
    """
    for note in checkpoint.notes:
        _log.warning("%s: %s", checkpoint.folder, note)
    reuse_memory()
    model = build(checkpoint.config, dtype or backend().dtype)
    _load(model, checkpoint, lambda name: name.startswith(LANGUAGE), on_progress)
    return model


def load_head(checkpoint: Checkpoint, dtype: mx.Dtype) -> MagistralModel:
    """Load a model without layers, of which `logits` alone can be called.

    Raises:
        CheckpointError: a file cannot be read to its end.
    """
    config = checkpoint.config
    model = MagistralModel(replace(config, text=replace(config.text, num_hidden_layers=0)), dtype)
    _load(model, checkpoint, lambda name: name.startswith(head_prefix(config)), None)
    return model


def load_vision(
    model: MagistralModel, checkpoint: Checkpoint, on_progress: OnProgress | None = None
) -> None:
    """Build and load the vision tower and the projector of a model that `load_model` made.

    Raises:
        CheckpointError: a file cannot be read to its end.
    """
    model.add_vision()
    _load(model, checkpoint, lambda name: not name.startswith(LANGUAGE), on_progress)


def _load(
    model: MagistralModel,
    checkpoint: Checkpoint,
    wanted: Callable[[str], bool],
    on_progress: OnProgress | None,
) -> None:
    schemes = {name: q for name, q in checkpoint.quantized.items() if wanted(name)}
    quantize_modules(model, schemes)
    parameters = {
        path: names for path, names in stored_as(model).items() if all(map(wanted, names))
    }
    compact = keeps_scales(checkpoint, model.dtype.size)
    total = sum(_stored_bytes(checkpoint, names) for names in parameters.values())
    done = 0
    for batch in _batches(checkpoint, parameters):
        names = [name for _, held in batch for name in held]
        try:
            found = _lay_out(checkpoint, batch, model.dtype, compact)
            others = [(path, held) for path, held in batch if path not in found]
            stored = _read(
                checkpoint, [name for _, held in others for name in held], model.dtype, compact
            )
            found |= {path: _stack([stored.pop(name) for name in held]) for path, held in others}
            weights = [(path, found[path]) for path, _ in batch]
            model.load_weights(weights, strict=False)
            mx.eval([array for _, array in weights])
        except RuntimeError as error:
            file = checkpoint.tensors[names[0]].file
            raise CheckpointError(f"cannot read {file}: {error}") from None
        done += _stored_bytes(checkpoint, names)
        if on_progress:
            on_progress(done, total)


def _batches(
    checkpoint: Checkpoint, parameters: Mapping[str, Sequence[str]]
) -> Iterator[list[tuple[str, Sequence[str]]]]:
    """Parameters with their tensors' names, in the order in which the first of these lie in the
    files, in batches of `_BATCH_BYTES`."""
    tensors = checkpoint.tensors
    batch: list[tuple[str, Sequence[str]]] = []
    size = 0
    last = ""  # module, whose parts are read together
    for path, names in sorted(
        parameters.items(),
        key=lambda item: min((tensors[name].file, tensors[name].offset) for name in item[1]),
    ):
        more = _stored_bytes(checkpoint, names)
        module = path.rpartition(".")[0]
        if batch and size + more > _BATCH_BYTES and module != last:
            yield batch
            batch, size = [], 0
        last = module
        batch.append((path, names))
        size += more
    if batch:
        yield batch


def _stored_bytes(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    return sum(checkpoint.tensors[name].nbytes for name in names)


def _stack(parts: list[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def keeps_scales(checkpoint: Checkpoint, float_bytes: int) -> bool:
    """Return whether scales and biases keep their stored dtype.

    Casting them to a wider compute dtype once saves a cast at every use, about a tenth of a
    decode step on the CPU; for a large model the memory matters more.
    """
    extra = sum(
        tensor.nbytes // 2 * (float_bytes - 2)
        for name, tensor in checkpoint.tensors.items()
        if is_scale(name) and tensor.dtype in ("BF16", "F16")
    )
    return extra > _LARGE_SCALES


def is_scale(name: str) -> bool:
    """Return whether a tensor is the scales or biases of a quantized matrix."""
    return name.endswith((".scales", ".biases"))


def computes_in_float32(name: str, config: ModelConfig) -> bool:
    """Return whether a tensor is scales or biases of the head, which are float32 in memory.

    A quantized product has the dtype of its scales. bfloat16 logits lie an eighth apart, so that
    the likeliest tokens often tie, and rounding that differs from kernel to kernel decides. Wider
    scales of Magistral Small's head are 42 MB, 0.3 % of what a token reads.
    """
    return is_scale(name) and name.startswith(head_prefix(config))


def _read(
    checkpoint: Checkpoint, names: Iterable[str], dtype: mx.Dtype, compact: bool
) -> dict[str, mx.array]:
    """Read arrays by name; lazy ones in the layout and dtype of the model."""
    found = {}
    for name, stored in read_stored(checkpoint, names, dtype, compact=compact).items():
        array = _arrange(checkpoint, name, stored)
        found[name] = _cast(checkpoint, name, array, dtype, compact)
    return found


def _cast(
    checkpoint: Checkpoint, name: str, array: mx.array, dtype: mx.Dtype, compact: bool
) -> mx.array:
    """Cast floats to what the model computes with."""
    if not mx.issubdtype(array.dtype, mx.floating):
        return array
    if computes_in_float32(name, checkpoint.config):
        return array.astype(mx.float32)
    return array if compact and is_scale(name) else array.astype(dtype)


def _lay_out(
    checkpoint: Checkpoint,
    batch: Iterable[tuple[str, Sequence[str]]],
    dtype: mx.Dtype,
    compact: bool,
) -> dict[str, mx.array]:
    """Path -> array, of the parameters that are whole quantized matrices of a GGUF file."""
    if checkpoint.layout != "gguf" or checkpoint.source is not None:
        return {}
    whole = {
        path: held
        for path, held in batch
        if not any(isinstance(checkpoint.tensors[name], TensorPart) for name in held)
    }
    return {
        path: _cast(checkpoint, whole[path][0], array, dtype, compact)
        for path, array in read_stacks(checkpoint, whole, compact=compact).items()
    }


def read_stored(
    checkpoint: Checkpoint, names: Iterable[str], dtype: mx.Dtype, *, compact: bool
) -> dict[str, mx.array]:
    """Read arrays by name, as stored; FP8 matrices are dequantized to `dtype`.

    Args:
        compact: scales of a GGUF file in half precision.

    Raises:
        CheckpointError, RuntimeError: a file cannot be read to its end.
    """
    if (source := checkpoint.source) is not None:
        return {name: source.read(name, dtype, compact=compact) for name in names}
    tensors = {name: checkpoint.tensors[name] for name in names}
    if checkpoint.layout == "gguf":  # of a rank's part, each matrix is laid out whole first
        wholes = {name: whole_of(tensor) for name, tensor in tensors.items()}
        store = replace(checkpoint, tensors=wholes)
        arrays = read_arrays(store, names, dtype, compact=compact)
        return {name: take_part(array, tensors[name]) for name, array in arrays.items()}
    scales = {
        name: checkpoint.fp8_scales[name] for name in tensors if name in checkpoint.fp8_scales
    }
    parts = {
        name: read_part(tensor)
        for name, tensor in tensors.items()
        if isinstance(tensor, TensorPart) and name not in scales
    }
    tensors = {name: tensor for name, tensor in tensors.items() if name not in parts}
    files = {tensor.file for tensor in (*tensors.values(), *scales.values())}
    stored = {file: cast(dict[str, mx.array], mx.load(str(file))) for file in files}
    arrays = {name: stored[tensor.file].pop(tensor.name) for name, tensor in tensors.items()}
    # Read now. On Metal files are read by the CPU (mlx/io/safetensors.cpp, line 122 of commit
    # 846d176), and the GPU's work on them waits in its queue: with a slow disk longer than macOS
    # lets it.
    mx.eval([*arrays.values(), *(stored[scale.file][scale.name] for scale in scales.values())])
    for name, scale in scales.items():
        codes, tensor = arrays.pop(name), tensors[name]
        array = dequantize_fp8(whole_of(tensor), codes, stored[scale.file][scale.name], dtype)
        arrays[name] = take_part(array, tensor)
    return arrays | parts


def _arrange(checkpoint: Checkpoint, name: str, array: mx.array) -> mx.array:
    """Rearrange a tensor into the layout of the model's modules."""
    config = checkpoint.config
    if name.endswith("patch_conv.weight") and is_channels_last(array.shape, config):
        array = array.transpose(0, 3, 1, 2)
    if checkpoint.layout in INTERLEAVED and (heads := interleaved_heads(name, config)):
        array = deinterleave_heads(array, heads)
    return array


def deinterleave_heads(weight: mx.array, heads: int) -> mx.array:
    """Reorder the rows of a projection from rope pairs (0, 1), (2, 3)… to halves (0, D/2)…

    Args:
        weight: (heads * head_dim, in).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, columns)
