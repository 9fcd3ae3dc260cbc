"""An opened checkpoint: its files and tensors, read from headers and validated.

The loader (`checkpoint.load`) and the converter both read from it.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from magistral_mlx.checkpoint.fp8 import split_scales
from magistral_mlx.checkpoint.header import StoredTensor, read_header
from magistral_mlx.checkpoint.names import EMBEDDING, HEAD, LANGUAGE, canonical_name
from magistral_mlx.checkpoint.validation import check_tensors
from magistral_mlx.config import ModelConfig
from magistral_mlx.config_files import read_config, read_json
from magistral_mlx.errors import CheckpointError
from magistral_mlx.quantization import Quantization
from magistral_mlx.split import WHOLE, Split

if TYPE_CHECKING:
    from magistral_mlx.checkpoint.gguf.checkpoint import GgufModel

Layout = Literal["hf", "mistral", "gguf"]

_COMPARED_BYTES = 4 << 20  # at once
_SHARD_NAME = re.compile(r"[^/\\\0]+\.safetensors")
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16  # of each file, in a fingerprint


class TensorSource(Protocol):
    """Tensors of a checkpoint whose files are not here."""

    def read(self, name: str, dtype: Any, *, compact: bool) -> Any:
        """Read a tensor as an array; see `read_stored` in magistral_mlx/checkpoint/load.py."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder, or a GGUF file, whose headers have been read and checked; no weights are in memory.

    `tensors` and `quantized` are keyed by canonical name; `quantized` holds the scheme of each
    quantized `….weight`. `config` has no vision part where the folder holds
    no vision tensors, whatever its config.json says (mlx-lm's conversions keep it there).
    `fp8_scales` are the scales of FP8 weights, by the weight's name. `notes` are for the user.
    `split` tells which part of the model it is, by default the whole (`checkpoint.part`).
    `source` is where its tensors are read from instead of its files, which are on another machine.
    `blocks` is where the quantized matrices of a GGUF file lie, as ggml stores them; `tensors` has
    them as they are laid out.
    """

    folder: Path
    config: ModelConfig
    layout: Layout
    tensors: dict[str, StoredTensor]
    quantized: dict[str, Quantization]
    blocks: Mapping[str, StoredTensor] = field(default_factory=dict)
    fp8_scales: Mapping[str, StoredTensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    split: Split = WHOLE
    source: TensorSource | None = None

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read and check the checkpoint in `folder`, which may be a GGUF file as well.

        Raises:
            CheckpointError: no checkpoint, or one that is damaged, incomplete, or holds tensors
                that the model does not have.
            UnsupportedModel: another architecture.
        """
        from magistral_mlx.checkpoint.gguf.checkpoint import open_gguf
        from magistral_mlx.checkpoint.gguf.files import gguf_of

        gguf = gguf_of(folder)
        if gguf is not None:
            return cls.from_gguf(open_gguf(gguf))
        config = read_config(folder)
        layout, files = find_weight_files(folder)
        stored = (tensor for file in files for tensor in read_header(file).values())
        return cls.from_tensors(folder, config, layout, stored)

    @classmethod
    def from_gguf(cls, model: GgufModel) -> Checkpoint:
        """Validate the headers of a GGUF model. Raises as `from_tensors` does."""
        found = cls.from_tensors(model.path, model.config, "gguf", model.tensors)
        return replace(found, blocks=model.blocks)

    @classmethod
    def from_tensors(
        cls,
        folder: Path,
        config: ModelConfig,
        layout: Layout,
        stored: Iterable[StoredTensor],
        *,
        is_local: bool = True,
    ) -> Checkpoint:
        """Validate the tensors of a checkpoint; its files need not be on this machine.

        Args:
            is_local: the files are here, so that their content may be compared.

        Raises:
            CheckpointError: tensors are missing, misshapen, there twice, or not the model's.
        """
        tensors, fp8_scales = split_scales(_by_canonical_name(stored))
        if not any(not name.startswith(LANGUAGE) for name in tensors):
            config = config.without_vision()
        notes: list[str] = []
        if config.text.tie_word_embeddings and HEAD + "weight" in tensors:
            config = _settle_head(tensors, config, notes, is_local=is_local)
        quantized = check_tensors(tensors, config, folder, fp8_scales)
        return cls(
            folder,
            config,
            layout,
            tensors,
            quantized,
            fp8_scales=fp8_scales,
            notes=tuple(notes),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        every = (*self.tensors.values(), *self.fp8_scales.values())
        return sum(tensor.nbytes for tensor in every)

    @property
    def parameters(self) -> int:
        """Number of weights, however many bits each is stored in."""
        count = 0
        for name, tensor in self.tensors.items():
            scheme = self.quantized.get(name)
            stored = math.prod(tensor.shape)
            if scheme is not None:
                count += stored * 32 // scheme.bits  # packed into uint32
            elif name.rpartition(".")[2] not in ("scales", "biases"):
                count += stored
        return count

    @property
    def common_bits(self) -> int | None:
        """Bits of most quantized matrices; None where none is quantized."""
        bits = Counter(scheme.bits for scheme in self.quantized.values()).most_common(1)
        return bits[0][0] if bits else None

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted."""
        every = (*self.tensors.values(), *self.fp8_scales.values())
        return sorted({tensor.file for tensor in every})

    def fingerprint(self) -> str:
        """Return a digest of configuration and weights.

        It covers of each file its name, size, time of change, header and samples of its content.
        Another quantization, or the same one converted anew, has another fingerprint.

        Raises:
            OSError: a file cannot be read.
        """
        part = "" if self.split.whole else f" {self.split}"
        digest = hashlib.blake2b(f"{self.config!r}{part}".encode(), digest_size=16)
        header_bytes: dict[Path, int] = {}  # up to the first tensor
        for tensor in (*self.tensors.values(), *self.fp8_scales.values()):
            first = header_bytes.get(tensor.file, tensor.offset)
            header_bytes[tensor.file] = min(tensor.offset, first)
        for file, length in sorted(header_bytes.items()):
            _add_file(digest, file, length)
        return digest.hexdigest()


def _settle_head(
    tensors: dict[str, StoredTensor], config: ModelConfig, notes: list[str], *, is_local: bool
) -> ModelConfig:
    """Settle a stored output head whose configuration says that it is the embedding.

    One that equals the embedding is dropped from `tensors`. With another one the model is untied,
    which is right for an equal one too.
    """
    head = {name: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if is_local and _equals_embedding(head, tensors):
        for name in head:
            del tensors[name]
        return config
    differs = "differs from the embedding" if is_local else "may differ from the embedding"
    notes.append(
        f"the configuration ties lm_head to the embedding, but the checkpoint stores a head that "
        f"{differs}: the stored head is used."
    )
    return replace(config, text=replace(config.text, tie_word_embeddings=False))


def _equals_embedding(
    head: Mapping[str, StoredTensor], tensors: Mapping[str, StoredTensor]
) -> bool:
    """Compare the stored head with the embedding byte by byte, up to the first difference."""
    for name, one in head.items():
        other = tensors.get(EMBEDDING + name.removeprefix(HEAD))
        if other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        try:
            with one.file.open("rb") as first, other.file.open("rb") as second:
                first.seek(one.offset)
                second.seek(other.offset)
                for start in range(0, one.nbytes, _COMPARED_BYTES):
                    size = min(_COMPARED_BYTES, one.nbytes - start)
                    if first.read(size) != second.read(size):
                        return False
        except OSError as error:
            raise CheckpointError(f"cannot read {one.file}: {error.strerror}.") from None
    return True


def find_weight_files(folder: Path) -> tuple[Layout, list[Path]]:
    """Find the layout and the weight files of a folder; Hugging Face's is preferred.

    Raises:
        CheckpointError: there are none, or the index names one that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in read_index(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} is incomplete: {len(missing)} of {len(files)} weight files are "
                f"missing, {missing[0]} first. Fetch or convert the model again."
            )
        return "hf", files
    for layout, pattern in (("hf", "model*.safetensors"), ("mistral", "consolidated*.safetensors")):
        files = sorted(folder.glob(pattern))
        if files:
            return layout, files  # type: ignore[return-value]
    raise CheckpointError(
        f"{folder} holds no weights: expected model*.safetensors or consolidated*.safetensors. "
        "Fetch or convert the model again."
    )


def read_index(index: Path) -> list[str]:
    """Read the names of the shards in a model.safetensors.index.json, sorted.

    Raises:
        CheckpointError: the file is damaged, or names a shard outside of its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Fetch that file again.")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CheckpointError(
                f"{index} is damaged: it puts {tensor} into {shard!r}, which is not the name of a "
                "shard. Fetch that file again."
            )
    return sorted(set(weight_map.values()))


def _by_canonical_name(every: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for stored in every:
        name = canonical_name(stored.name)
        if name is None:
            continue
        if name in tensors:
            raise CheckpointError(
                f"{stored.file.name} and {tensors[name].file.name} in {stored.file.parent} both "
                f"hold {stored.name}. Remove the files of one of the two."
            )
        tensors[name] = stored
    return tensors


def _add_file(digest: hashlib.blake2b, file: Path, header_bytes: int) -> None:
    status = file.stat()
    digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns} ".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(header_bytes))
        for n in range(_SAMPLES):
            stream.seek(status.st_size * n // _SAMPLES)
            digest.update(stream.read(_SAMPLE_BYTES))
