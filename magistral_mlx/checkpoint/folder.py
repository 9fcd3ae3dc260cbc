"""A checkpoint folder: which files hold which tensors, and whether all of it is there and whole.

Both readers stand on this: the loader (`checkpoint.load`) and the converter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from magistral_mlx.checkpoint.header import FLOATS, StoredTensor, read_header
from magistral_mlx.checkpoint.names import LANGUAGE, canonical, expected_tensors
from magistral_mlx.config import ModelConfig
from magistral_mlx.config_files import read_config, read_json
from magistral_mlx.errors import CheckpointError
from magistral_mlx.quantization import Quantization, infer

Layout = Literal["hf", "mistral", "gguf"]


@dataclass(frozen=True)
class Checkpoint:
    """A folder, or a GGUF file, whose headers have been read and checked; no weights are in memory.

    `tensors` and `quantized` go by canonical name: the former to where a tensor lies, the latter
    from a quantized `….weight` to its scheme. `config` has no vision part where the folder holds
    no vision tensors, whatever its config.json says (mlx-lm's conversions keep it there).
    `blocks` is where the quantized matrices of a GGUF file lie, as ggml stores them; `tensors` has
    them as they are laid out.
    """

    folder: Path
    config: ModelConfig
    layout: Layout
    tensors: dict[str, StoredTensor]
    quantized: dict[str, Quantization]
    blocks: Mapping[str, StoredTensor] = field(default_factory=dict)

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
            return open_gguf(gguf)
        config = read_config(folder)
        layout, files = weight_files(folder)
        stored = (tensor for file in files for tensor in read_header(file).values())
        return cls.of_tensors(folder, config, layout, stored)

    @classmethod
    def of_tensors(
        cls, folder: Path, config: ModelConfig, layout: Layout, stored: Iterable[StoredTensor]
    ) -> Checkpoint:
        """Check the tensors of a checkpoint whose headers have been read; its files may be away.

        Raises:
            CheckpointError: tensors are missing, misshapen, there twice, or not the model's.
        """
        tensors = _by_canonical_name(stored)
        if not any(not name.startswith(LANGUAGE) for name in tensors):
            config = config.without_vision()
        return cls(folder, config, layout, tensors, check_tensors(tensors, config, folder))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def weight_files(folder: Path) -> tuple[Layout, list[Path]]:
    """The layout of a folder and its weight files; Hugging Face's wins where both are there.

    Raises:
        CheckpointError: there are none, or the index names one that is missing.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = read_json(index).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise CheckpointError(f"{index} has no weight_map. Fetch that file again.")
        files = [folder / name for name in sorted(set(named.values()))]
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


def check_tensors(
    tensors: dict[str, StoredTensor], config: ModelConfig, where: Path
) -> dict[str, Quantization]:
    """Check that the tensors are those of the model, no more and no fewer, each of its shape.

    Returns:
        Canonical name of each quantized weight -> its scheme.

    Raises:
        CheckpointError: naming the first tensor that is missing, unknown or misshapen.
    """
    quantized: dict[str, Quantization] = {}
    known: set[str] = set()
    missing: list[str] = []
    for name, shape in expected_tensors(config).items():
        stored = tensors.get(name)
        if stored is None:
            missing.append(name)
            continue
        known.add(name)
        scales = tensors.get(_beside(name, "scales"))
        if scales is None:
            _check_plain(name, stored, shape)
        else:
            biases = tensors.get(_beside(name, "biases"))
            quantized[name] = _check_quantized(name, stored, scales, biases, shape)
            known |= {_beside(name, "scales"), _beside(name, "biases")}
    if missing:
        raise CheckpointError(
            f"{where} lacks {_few(missing)}, which the model in its configuration has. "
            "Fetch or convert it again."
        )
    unknown = [stored.name for name, stored in tensors.items() if name not in known]
    if unknown:
        raise CheckpointError(
            f"{where} holds {_few(unknown)}, which this model does not have. "
            "It is another model, or a newer format than this version knows."
        )
    return quantized


def is_channels_last(shape: tuple[int, ...], config: ModelConfig) -> bool:
    """Whether a patch_conv weight is (out, H, W, channels), as MLX and mlx-vlm have it."""
    vision = config.vision
    return vision is not None and shape[1:] == (
        vision.patch_size,
        vision.patch_size,
        vision.num_channels,
    )


def _by_canonical_name(every: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for stored in every:
        name = canonical(stored.name)
        if name is None:
            continue
        if name in tensors:
            raise CheckpointError(
                f"{stored.file.name} and {tensors[name].file.name} in {stored.file.parent} both "
                f"hold {stored.name}. Remove the files of one of the two."
            )
        tensors[name] = stored
    return tensors


def _check_plain(name: str, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    allowed = [shape]
    if name.endswith("patch_conv.weight"):
        out, channels, height, width = shape
        allowed.append((out, height, width, channels))
    if stored.shape not in allowed:
        raise _misshapen(stored, f"expected {list(shape)}")
    if stored.dtype not in FLOATS:
        raise CheckpointError(
            f"{stored.name} in {stored.file} is stored as {stored.dtype}; this runtime reads "
            f"{', '.join(FLOATS)} and MLX's quantized formats."
        )


def _check_quantized(
    name: str,
    weight: StoredTensor,
    scales: StoredTensor,
    biases: StoredTensor | None,
    shape: tuple[int, ...],
) -> Quantization:
    if weight.dtype != "U32" or len(shape) != 2:
        raise _misshapen(weight, "expected a matrix packed into U32")
    if biases is not None and biases.shape != scales.shape:
        raise _misshapen(biases, f"expected {list(scales.shape)}, the shape of its scales")
    found = infer((shape[0], shape[1]), weight.shape, scales.shape, has_biases=biases is not None)
    if found is None:
        raise _misshapen(
            weight,
            f"with scales {list(scales.shape)}: no quantization of {list(shape)} looks so",
        )
    return found


def _beside(name: str, part: str) -> str:
    return name.removesuffix("weight") + part


def _misshapen(stored: StoredTensor, why: str) -> CheckpointError:
    return CheckpointError(
        f"{stored.name} in {stored.file} has the shape {list(stored.shape)}, {why}. "
        "The file does not belong to this configuration, or is damaged: fetch it again."
    )


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"the tensor {names[0]}{more}"
