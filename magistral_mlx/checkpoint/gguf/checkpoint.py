"""The headers of a GGUF model: each quantized matrix in the form that it is laid out in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from magistral_mlx.checkpoint.gguf.blocks import is_quantized
from magistral_mlx.checkpoint.gguf.config import model_config
from magistral_mlx.checkpoint.gguf.files import find_mmproj, read_parts
from magistral_mlx.checkpoint.gguf.header import GgufFile, read_gguf
from magistral_mlx.checkpoint.gguf.layout import FITTED, SCALES, form_of
from magistral_mlx.checkpoint.header import DTYPE_BYTES, StoredTensor
from magistral_mlx.checkpoint.names import canonical_name
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import CheckpointError


@dataclass(frozen=True)
class GgufModel:
    """A GGUF model whose headers have been read; `Checkpoint.from_gguf` makes a checkpoint of it.

    tensors: as a checkpoint in MLX's format would hold them. blocks: by canonical name, the
    quantized matrices as ggml stores them.
    """

    path: Path
    config: ModelConfig
    tensors: tuple[StoredTensor, ...]
    blocks: dict[str, StoredTensor]


def open_gguf(path: Path, mmproj: Path | None = None) -> GgufModel:
    """Read and check the headers of a GGUF model.

    Args:
        path: its file, or one of the files of a split one.
        mmproj: the file of the vision tower; None is the one found beside it, if there is one.

    Raises:
        CheckpointError: a file is damaged, incomplete, or does not belong to the model.
        UnsupportedModel: another architecture, or a type of blocks that is not read here.
    """
    files = read_parts(path)
    tower = find_mmproj(path, files[0]) if mmproj is None else read_gguf(mmproj)
    return gguf_model(path, files, tower)


def gguf_model(path: Path, files: list[GgufFile], tower: GgufFile | None) -> GgufModel:
    """Combine headers that have been read. Raises as `open_gguf` does."""
    gathered = replace(files[0], tensors={k: v for file in files for k, v in file.tensors.items()})
    config = model_config(gathered, tower)
    every = files if tower is None else [*files, tower]
    stored = [tensor for file in every for tensor in file.tensors.values()]
    blocks = {str(canonical_name(t.name)): t for t in stored if is_quantized(t.dtype)}
    for tensor in blocks.values():
        if len(tensor.shape) != 2:
            raise CheckpointError(
                f"{tensor.name} in {tensor.file} is quantized and no matrix. Fetch that file again."
            )
    head = "token_embd.weight" if config.text.tie_word_embeddings else "output.weight"
    parts = tuple(part for tensor in stored for part in _parts(tensor, head))
    return GgufModel(path, config, parts, blocks)


def _parts(tensor: StoredTensor, head: str) -> Iterator[StoredTensor]:
    """A tensor as a checkpoint in MLX's format would hold it."""
    if not is_quantized(tensor.dtype):
        yield tensor
        return
    rows, columns = tensor.shape
    if tensor.name == head and tensor.dtype in FITTED:
        yield replace(tensor, dtype="F32", nbytes=rows * columns * DTYPE_BYTES["F32"])
        return
    scheme, module = form_of(tensor.dtype), tensor.name.removesuffix("weight")
    sizes = (
        ("weight", "U32", scheme.weight_shape((rows, columns))),
        ("scales", SCALES, scheme.scales_shape((rows, columns))),
        ("biases", SCALES, scheme.scales_shape((rows, columns))),
    )
    for part, dtype, shape in sizes:
        nbytes = math.prod(shape) * DTYPE_BYTES[dtype]
        yield replace(tensor, name=module + part, dtype=dtype, shape=shape, nbytes=nbytes)
