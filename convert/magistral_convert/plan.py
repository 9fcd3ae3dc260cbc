"""The whole output, computed before a weight is read: names, dtypes, shapes, shards and offsets.

Tensors lie in the output in the model's own order, whatever order the source has, so the same
weights give the same files from every layout. Work goes in the source's order, shard by shard, so
that a downloaded shard can be deleted when it is done. Both are possible because every offset is
known: each tensor is written straight to its place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from magistral_convert.recipe import Recipe
from magistral_convert.spelling import output_name
from magistral_mlx.checkpoint.folder import Checkpoint, is_channels_last
from magistral_mlx.checkpoint.header import LENGTH_BYTES, StoredTensor
from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors, interleaved_heads
from magistral_mlx.quantization import Quantization

SHARD_BYTES = 5 * 10**9  # what the hub takes comfortably, and what mlx-lm writes
_HEADER_ROOM = 1 << 20


@dataclass(frozen=True)
class Part:
    """One tensor of the output: `offset` is in bytes from the start of its shard's file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    shard: int
    offset: int = 0


@dataclass(frozen=True)
class Task:
    """One tensor of the source and what becomes of it.

    The source is taken as a matrix of (rows, columns); a vector is one row. `scheme` is None
    where values stay in bfloat16. `halve_heads` rows of each head go from interleaved rope pairs
    to halves; `channels` planes of a convolution go last. `parts` is the weight, then, where it
    is quantized, its scales and, in affine mode, its biases.
    """

    name: str
    source: StoredTensor
    rows: int
    columns: int
    scheme: Quantization | None
    parts: tuple[Part, ...]
    halve_heads: int | None = None  # rows of a head
    channels: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in the source."""
        return self.source.nbytes // self.rows

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True)
class Shard:
    """One file of the output: its header (length included) and its size."""

    file: str
    header: bytes
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """The output of one conversion. `tasks` are in the source's order."""

    shards: tuple[Shard, ...]
    tasks: tuple[Task, ...]
    quantization: dict[str, Any]

    @property
    def source_bytes(self) -> int:
        return sum(task.source.nbytes for task in self.tasks)

    @property
    def output_bytes(self) -> int:
        """Bytes of all shards, headers included."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def parameters(self) -> int:
        return sum(task.rows * task.columns for task in self.tasks)

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(task.nbytes for task in self.tasks) / self.parameters

    @property
    def index(self) -> dict[str, Any]:
        """The content of model.safetensors.index.json."""
        parts = [part for task in self.tasks for part in task.parts]
        return {
            "metadata": {
                "total_size": sum(part.nbytes for part in parts),
                "total_parameters": self.parameters,
            },
            "weight_map": {
                part.name: self.shards[part.shard].file
                for part in sorted(parts, key=lambda part: part.name)
            },
        }


def make_plan(
    checkpoint: Checkpoint, recipe: Recipe, *, bare: bool, shard_bytes: int = SHARD_BYTES
) -> Plan:
    """Plan the conversion of a checkpoint that is not quantized.

    Args:
        bare: names without `language_model.`, see `spelling`.
        shard_bytes: the largest size of an output file.

    Raises:
        InvalidOption: the recipe does not fit a matrix.
    """
    tasks = [
        _task(checkpoint, name, recipe, bare=bare) for name in expected_tensors(checkpoint.config)
    ]
    shards, tasks = _lay_out(tasks, shard_bytes)
    tasks.sort(key=lambda task: (task.source.file.name, task.source.offset))
    return Plan(tuple(shards), tuple(tasks), _quantization(tasks, recipe, bare=bare))


def _task(checkpoint: Checkpoint, name: str, recipe: Recipe, *, bare: bool) -> Task:
    source, config = checkpoint.tensors[name], checkpoint.config
    shape = source.shape
    scheme = recipe.scheme(name, shape)
    channels = None
    if len(shape) == 4 and not is_channels_last(shape, config):
        channels = shape[1]
        shape = (shape[0], *shape[2:], channels)
    heads = interleaved_heads(name, config) if checkpoint.layout == "mistral" else None
    rows = shape[0] if len(shape) > 1 else 1
    return Task(
        name=name,
        source=source,
        rows=rows,
        columns=math.prod(shape) // rows,
        scheme=scheme,
        parts=tuple(_parts(output_name(name, bare=bare), shape, scheme)),
        halve_heads=rows // heads if heads else None,
        channels=channels,
    )


def _parts(name: str, shape: tuple[int, ...], scheme: Quantization | None) -> Iterator[Part]:
    if scheme is None:
        yield Part(name, "BF16", shape, 2 * math.prod(shape), 0)
        return
    matrix = (shape[0], shape[1])
    packed, groups = scheme.weight_shape(matrix), scheme.scales_shape(matrix)
    module = name.removesuffix("weight")
    yield Part(name, "U32", packed, 4 * math.prod(packed), 0)
    if scheme.has_biases:
        yield Part(module + "scales", "BF16", groups, 2 * math.prod(groups), 0)
        yield Part(module + "biases", "BF16", groups, 2 * math.prod(groups), 0)
    else:
        yield Part(module + "scales", "U8", groups, math.prod(groups), 0)


def _lay_out(tasks: list[Task], shard_bytes: int) -> tuple[list[Shard], list[Task]]:
    """Give every part its shard and offset. A task's parts stay together."""
    groups: list[list[Task]] = []
    size = 0
    for task in tasks:
        if not groups or size + task.nbytes > shard_bytes - _HEADER_ROOM:
            groups.append([])
            size = 0
        groups[-1].append(task)
        size += task.nbytes
    shards: list[Shard] = []
    placed: list[Task] = []
    for number, group in enumerate(groups):
        header, offsets = _header([part for task in group for part in task.parts])
        for task in group:
            parts = tuple(
                replace(part, shard=number, offset=len(header) + offsets[part.name])
                for part in task.parts
            )
            placed.append(replace(task, parts=parts))
        nbytes = len(header) + sum(task.nbytes for task in group)
        shards.append(Shard(shard_file(number + 1, len(groups)), header, nbytes))
    return shards, placed


def shard_file(number: int, count: int) -> str:
    """The name of a shard, counted from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _header(parts: list[Part]) -> tuple[bytes, dict[str, int]]:
    """A safetensors header, length included, and where in the data each part begins."""
    entries: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offsets: dict[str, int] = {}
    end = 0
    for part in parts:
        offsets[part.name] = end
        entries[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [end, end + part.nbytes],
        }
        end += part.nbytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(LENGTH_BYTES, "little") + raw, offsets


def _quantization(tasks: list[Task], recipe: Recipe, *, bare: bool) -> dict[str, Any]:
    """The `quantization` entry of config.json: the rule, then the decoder's exceptions by path."""

    def entry(scheme: Quantization) -> dict[str, Any]:
        return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}

    exceptions: dict[str, Any] = {}
    for task in sorted(tasks, key=lambda task: task.name):
        is_matrix = task.name.startswith(LANGUAGE) and len(task.source.shape) == 2
        if is_matrix and task.scheme != recipe.base:
            path = output_name(task.name.removesuffix(".weight"), bare=bare)
            exceptions[path] = entry(task.scheme) if task.scheme else False
    return entry(recipe.base) | exceptions
