"""The output of a conversion, computed before a weight is read: names, shapes, shards, offsets.

Tensors lie in the output in the model's own order, whatever order the source has, so the same
weights give the same files from every layout. They are converted in the source's order, shard by
shard, so that a downloaded shard can be deleted when it is done. Both are possible because every
offset is known beforehand: each tensor is written straight to its place.

The file is longer than others because shapes, shards and offsets follow from one another.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magistral_convert.fusion import Fusion
from magistral_convert.output_format import output_name, quantization_entry
from magistral_convert.recipe import Recipe
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.fp8 import FP8
from magistral_mlx.checkpoint.gguf.blocks import is_quantized
from magistral_mlx.checkpoint.gguf.layout import SCALES, form_of
from magistral_mlx.checkpoint.header import LENGTH_BYTES, StoredTensor
from magistral_mlx.checkpoint.names import (
    INTERLEAVED,
    LANGUAGE,
    expected_tensors,
    interleaved_heads,
    is_channels_last,
)
from magistral_mlx.quantization import Quantization

SHARD_BYTES = 5 * 10**9  # what the hub takes comfortably, and what mlx-lm writes
_HEADER_ROOM = 1 << 20


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the output: `offset` is in bytes from the start of its shard's file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    shard: int
    offset: int = 0


@dataclass(frozen=True)
class TensorConversion:
    """One tensor of the source and its conversion.

    The source is taken as a matrix of (rows, columns); a vector is one row. `scheme` is None
    where values stay in bfloat16. A source of ggml's blocks that has a scheme is laid out as that.
    `stored` is the quantization of a source in MLX's form, whose scales and biases lie `beside`
    it, as does the scale of an FP8 source. `rope_head_rows` is the number of rows of a head that
    go from interleaved rope pairs to halves; `channels` that of a convolution whose channels go
    last.
    `outputs` is the weight, then, where it is quantized, its scales and, in affine mode, biases.
    `fusion` is what an adapter makes of it.
    """

    name: str
    source: StoredTensor
    rows: int
    columns: int
    scheme: Quantization | None
    outputs: tuple[OutputTensor, ...]
    rope_head_rows: int | None = None
    channels: int | None = None
    stored: Quantization | None = None
    beside: tuple[StoredTensor, ...] = ()
    fusion: Fusion | None = None

    @property
    def is_quantized(self) -> bool:
        """Whether the source is."""
        return self.stored is not None or is_quantized(self.source.dtype)

    @property
    def is_fp8(self) -> bool:
        """Whether the source is FP8 codes with a scale."""
        return self.source.dtype == FP8

    @property
    def files(self) -> list[Path]:
        """The source files that it is read from; the first has the weight."""
        return list(dict.fromkeys([self.source.file, *(part.file for part in self.beside)]))

    @property
    def source_bytes(self) -> int:
        """Bytes in the source, with what goes with a quantized weight."""
        return self.source.nbytes + sum(tensor.nbytes for tensor in self.beside)

    @property
    def is_from_blocks(self) -> bool:
        """Whether the output is ggml's blocks in another form, with nothing added to them."""
        return is_quantized(self.source.dtype) and self.fusion is None

    @property
    def is_laid_out(self) -> bool:
        """Whether the codes of the source are those of the output, in another order."""
        return self.scheme is not None and self.is_from_blocks

    @property
    def is_quantized_here(self) -> bool:
        """Whether the scales of the output are chosen here, not by whoever made the source."""
        return self.scheme is not None and not self.is_laid_out

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the source."""
        return self.source.nbytes // self.rows

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return sum(output.nbytes for output in self.outputs)


@dataclass(frozen=True)
class Shard:
    """One file of the output: its header (length included) and its size."""

    file: str
    header: bytes
    nbytes: int


@dataclass(frozen=True)
class ConversionPlan:
    """The output of one conversion. `tensors` are in the order of the source."""

    shards: tuple[Shard, ...]
    tensors: tuple[TensorConversion, ...]
    quantization: dict[str, Any]

    @property
    def source_bytes(self) -> int:
        return sum(tensor.source_bytes for tensor in self.tensors)

    @property
    def output_bytes(self) -> int:
        """Bytes of all shards, headers included."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def parameters(self) -> int:
        return sum(tensor.rows * tensor.columns for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / self.parameters

    @property
    def index(self) -> dict[str, Any]:
        """The content of model.safetensors.index.json."""
        outputs = [output for tensor in self.tensors for output in tensor.outputs]
        return {
            "metadata": {
                "total_size": sum(output.nbytes for output in outputs),
                "total_parameters": self.parameters,
            },
            "weight_map": {
                output.name: self.shards[output.shard].file
                for output in sorted(outputs, key=lambda output: output.name)
            },
        }


def plan_conversion(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    flat: bool,
    shard_bytes: int = SHARD_BYTES,
    changes: Mapping[str, Fusion] | None = None,
) -> ConversionPlan:
    """Plan the conversion of a checkpoint; what ggml has quantized is laid out anew, unless the
    recipe quantizes nothing.

    Args:
        flat: names without `language_model.`, see `output_format`.
        shard_bytes: the largest size of an output file.
        changes: what an adapter makes of tensors, by name.

    Raises:
        InvalidOption: the recipe does not fit a matrix.
    """
    tensors = [
        _convert_tensor(checkpoint, name, recipe, (changes or {}).get(name), flat=flat)
        for name in expected_tensors(checkpoint.config)
    ]
    shards, tensors = _assign_shards(tensors, shard_bytes)
    tensors.sort(key=lambda tensor: (tensor.source.file.name, tensor.source.offset))
    base = recipe.base
    if any(tensor.is_laid_out for tensor in tensors):  # a source's own forms are among them
        decoder = [tensor.scheme for tensor in tensors if tensor.name.startswith(LANGUAGE)]
        every = [tensor.scheme for tensor in tensors]
        base = next(filter(None, map(_most_common, (decoder, every))))
    schemes = {tensor.name: tensor.scheme for tensor in tensors if _has_scheme(tensor)}
    quantization = quantization_entry(base, schemes, flat=flat)
    return ConversionPlan(tuple(shards), tuple(tensors), quantization)


def _most_common(schemes: Iterable[Quantization | None]) -> Quantization | None:
    found = Counter(filter(None, schemes)).most_common(1)
    return found[0][0] if found else None


def _has_scheme(tensor: TensorConversion) -> bool:
    """Whether config.json tells the scheme: of the decoder's matrices, and of all that have one."""
    is_matrix = tensor.name.startswith(LANGUAGE) and len(tensor.source.shape) == 2
    return is_matrix or tensor.scheme is not None


def _convert_tensor(
    checkpoint: Checkpoint, name: str, recipe: Recipe, fusion: Fusion | None, *, flat: bool
) -> TensorConversion:
    config = checkpoint.config
    source = checkpoint.blocks.get(name) or checkpoint.tensors[name]
    stored = None if name in checkpoint.blocks else checkpoint.quantized.get(name)
    shape = source.shape if stored is None else expected_tensors(config)[name]
    if name in checkpoint.blocks:
        keeps = recipe.base is not None and name in checkpoint.quantized
        scheme = form_of(source.dtype) if keeps else None
    else:
        scheme = recipe.scheme(name, shape)
    channels = None
    if len(shape) == 4 and not is_channels_last(shape, config):
        channels = shape[1]
        shape = (shape[0], *shape[2:], channels)
    heads = interleaved_heads(name, config) if checkpoint.layout in INTERLEAVED else None
    scales = SCALES if name in checkpoint.blocks and fusion is None else "BF16"
    beside = [checkpoint.fp8_scales.get(name)]
    if stored:
        module = name.removesuffix("weight")
        beside = [checkpoint.tensors.get(module + part) for part in ("scales", "biases")]
    rows = shape[0] if len(shape) > 1 else 1
    return TensorConversion(
        name=name,
        source=source,
        rows=rows,
        columns=math.prod(shape) // rows,
        scheme=scheme,
        outputs=tuple(_outputs(output_name(name, flat=flat), shape, scheme, scales)),
        rope_head_rows=rows // heads if heads else None,
        channels=channels,
        stored=stored,
        beside=tuple(part for part in beside if part),
        fusion=fusion,
    )


def _outputs(
    name: str, shape: tuple[int, ...], scheme: Quantization | None, scales: str
) -> Iterator[OutputTensor]:
    """`scales`: the dtype of affine scales and biases, of two bytes."""
    if scheme is None:
        yield OutputTensor(name, "BF16", shape, 2 * math.prod(shape), 0)
        return
    matrix = (shape[0], shape[1])
    packed, groups = scheme.weight_shape(matrix), scheme.scales_shape(matrix)
    module = name.removesuffix("weight")
    yield OutputTensor(name, "U32", packed, 4 * math.prod(packed), 0)
    if scheme.has_biases:
        yield OutputTensor(module + "scales", scales, groups, 2 * math.prod(groups), 0)
        yield OutputTensor(module + "biases", scales, groups, 2 * math.prod(groups), 0)
    else:
        yield OutputTensor(module + "scales", "U8", groups, math.prod(groups), 0)


def _assign_shards(
    tensors: list[TensorConversion], shard_bytes: int
) -> tuple[list[Shard], list[TensorConversion]]:
    """Give every output its shard and offset. The outputs of a tensor stay in one shard."""
    groups: list[list[TensorConversion]] = []
    size = 0
    for tensor in tensors:
        if not groups or size + tensor.nbytes > shard_bytes - _HEADER_ROOM:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    shards: list[Shard] = []
    placed: list[TensorConversion] = []
    for number, group in enumerate(groups):
        header, offsets = _header([output for tensor in group for output in tensor.outputs])
        for tensor in group:
            outputs = tuple(
                replace(output, shard=number, offset=len(header) + offsets[output.name])
                for output in tensor.outputs
            )
            placed.append(replace(tensor, outputs=outputs))
        nbytes = len(header) + sum(tensor.nbytes for tensor in group)
        shards.append(Shard(shard_file(number + 1, len(groups)), header, nbytes))
    return shards, placed


def shard_file(number: int, count: int) -> str:
    """Return the file name of a shard, counted from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _header(outputs: list[OutputTensor]) -> tuple[bytes, dict[str, int]]:
    """Build a safetensors header, length included; return it and each tensor's data offset."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offsets: dict[str, int] = {}
    end = 0
    for output in outputs:
        offsets[output.name] = end
        entries[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": [end, end + output.nbytes],
        }
        end += output.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw, offsets
