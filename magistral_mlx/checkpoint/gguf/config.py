"""The model that GGUF metadata describe, checked against the tensors."""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

from magistral_mlx.checkpoint.gguf.header import GgufFile
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.config import (
    ModelConfig,
    QueryScaling,
    TextConfig,
    VisionConfig,
    Yarn,
)
from magistral_mlx.config_files import ARCHITECTURES
from magistral_mlx.errors import CheckpointError, UnsupportedModel

_TEXT = ("mistral3", "llama")  # what llama.cpp calls this decoder; older converters say llama
_TOWER, _PROJECTOR = "clip", "pixtral"
_IMAGE_TOKEN = 10
_VISION_EPS = 1e-5

Number = TypeVar("Number", int, float)


def model_config(text: GgufFile, tower: GgufFile | None) -> ModelConfig:
    """The configuration of a model from its own file (the first of them) and its mmproj file.

    Raises:
        UnsupportedModel: another architecture, or a variant of it that is not supported.
        CheckpointError: metadata are missing, or contradict the tensors or each other.
    """
    decoder = _text(text)
    if tower is None:
        return ModelConfig(text=decoder, vision=None)
    vision = _vision(tower)
    width = _Metadata(tower).whole("clip.vision.projection_dim", decoder.hidden_size)
    if width != decoder.hidden_size:
        raise CheckpointError(
            f"{tower.path} projects images to {width} values a token and {text.path} has "
            f"{decoder.hidden_size}: it belongs to another model. Name its own with --mmproj."
        )
    return ModelConfig(
        text=decoder,
        vision=vision,
        image_token_id=_IMAGE_TOKEN,
        spatial_merge_size=_merge_size(tower, vision),
        projector_bias="mm.1.bias" in tower.tensors,
    )


def is_tower(file: GgufFile) -> bool:
    """Whether a file holds a vision tower and projector, an mmproj as llama.cpp calls it."""
    return file.architecture == _TOWER


class _Metadata:
    """Typed access to the metadata of one file."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def get(self, key: str) -> Any:
        return self._file.metadata.get(key)

    def whole(self, key: str, default: int | None = None) -> int:
        return self._number(key, default, int)

    def real(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, float))

    def _number(self, key: str, default: Number | None, kind: type[Number]) -> Number:
        value = self.get(key)
        if value is None:
            value = default
        allowed = int if kind is int else (int, float)
        if not isinstance(value, allowed) or isinstance(value, bool) or not 0 < value < math.inf:
            raise CheckpointError(
                f"{self._file.path} says {value!r} for {key}; expected a number above 0. Fetch "
                "that file again."
            )
        return kind(value)


def _text(file: GgufFile) -> TextConfig:
    if file.architecture not in _TEXT:
        raise UnsupportedModel(
            f"{file.path} holds a model of the architecture {file.architecture!r}. This runtime "
            f"runs {ARCHITECTURES}, which GGUF files call {' or '.join(_TEXT)}."
        )
    read, arch = _Metadata(file), file.architecture
    _refuse_variants(file, read, arch)
    embedding = _matrix(file, "token_embd.weight")
    heads = read.whole(f"{arch}.attention.head_count")
    hidden = read.whole(f"{arch}.embedding_length")
    head_dim = read.whole(f"{arch}.attention.key_length", max(1, hidden // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if read.whole(f"{arch}.{key}", head_dim) != head_dim:
            raise UnsupportedModel(
                f"{file.path} has heads of {head_dim} and {read.get(f'{arch}.{key}')} for {key}: "
                "this runtime runs models in which both are the same."
            )
    vocabulary = read.whole(f"{arch}.vocab_size", embedding.shape[0])
    config = TextConfig(
        hidden_size=hidden,
        intermediate_size=read.whole(f"{arch}.feed_forward_length"),
        num_hidden_layers=read.whole(f"{arch}.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=read.whole(f"{arch}.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=vocabulary,
        max_position_embeddings=read.whole(f"{arch}.context_length"),
        rms_norm_eps=read.real(f"{arch}.attention.layer_norm_rms_epsilon"),
        rope_theta=read.real(f"{arch}.rope.freq_base", 10_000.0),
        tie_word_embeddings="output.weight" not in file.tensors,
        yarn=_yarn(read, arch),
        query_scaling=_query_scaling(read, arch),
    )
    _check_layers(file, "blk", config.num_hidden_layers)
    return config


def _refuse_variants(file: GgufFile, read: _Metadata, arch: str) -> None:
    """Refuse what the same architecture names cover and this runtime does not run."""
    for key, what in (
        ("expert_count", "a mixture of experts"),
        ("attention.sliding_window", "sliding-window attention"),
    ):
        if read.get(f"{arch}.{key}"):
            raise UnsupportedModel(f"{file.path} holds a model with {what}, which is not run here.")
    vocabulary = read.get("tokenizer.ggml.pre")
    if vocabulary not in (None, "tekken"):
        raise UnsupportedModel(
            f"{file.path} holds a model with the tokenizer {vocabulary!r}. This runtime runs "
            "models with Mistral's Tekken, such as Magistral Small."
        )


def _check_layers(file: GgufFile, prefix: str, layers: int) -> None:
    """Compare the layers that the metadata count with those that the tensors' names do."""
    layer = re.compile(rf"{re.escape(prefix)}\.(\d{{1,6}})\.")
    there = {int(found[1]) for name in file.tensors if (found := layer.match(name))}
    if layers != max(there, default=-1) + 1:
        raise CheckpointError(
            f"{file.path} counts {layers} layers in its metadata and {max(there, default=-1) + 1} "
            f"in its tensors ({prefix}.N). Fetch that file again."
        )


def _yarn(read: _Metadata, arch: str) -> Yarn | None:
    kind = read.get(f"{arch}.rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind != "yarn":
        raise UnsupportedModel(f"this GGUF file has {kind!r} rope scaling; yarn is run here.")
    scaling = f"{arch}.rope.scaling."
    spread = read.get(scaling + "yarn_log_multiplier")
    stretch = Yarn(
        factor=read.real(scaling + "factor"),
        original_context=read.whole(scaling + "original_context_length"),
        beta_fast=read.real(scaling + "yarn_beta_fast", 32.0),
        beta_slow=read.real(scaling + "yarn_beta_slow", 1.0),
        mscale=1.0,
        mscale_all_dim=float(spread) if spread else 0.0,
    )
    own = read.real(scaling + "attn_factor", 1.0) * read.real(scaling + "yarn_attn_factor", 1.0)
    if own == 1:
        return stretch
    return Yarn(
        stretch.factor,
        stretch.original_context,
        stretch.beta_fast,
        stretch.beta_slow,
        attention_factor=own * stretch.query_key_factor,
    )


def _query_scaling(read: _Metadata, arch: str) -> QueryScaling | None:
    if not read.get(f"{arch}.attention.temperature_scale"):
        return None
    return QueryScaling(
        read.real(f"{arch}.attention.temperature_scale"),
        read.whole(f"{arch}.rope.scaling.original_context_length"),
    )


def _vision(file: GgufFile) -> VisionConfig:
    read = _Metadata(file)
    kind = read.get("clip.projector_type") or read.get("clip.vision.projector_type")
    if file.architecture != _TOWER or kind != _PROJECTOR:
        raise UnsupportedModel(
            f"{file.path} holds a vision tower of the type {kind or file.architecture!r}; the one "
            f"of this model is of the type {_PROJECTOR!r}. Name its own with --mmproj."
        )
    if not read.get("clip.use_silu"):
        raise UnsupportedModel(f"{file.path} holds a tower with another activation than SiLU.")
    eps = read.real("clip.vision.attention.layer_norm_epsilon", _VISION_EPS)
    if abs(eps - _VISION_EPS) > 1e-8:
        raise UnsupportedModel(
            f"{file.path} has a tower with an epsilon of {eps:g}, not {_VISION_EPS:g}."
        )
    patches = _matrix(file, "v.patch_embd.weight", dimensions=4)
    _check_layers(file, "v.blk", read.whole("clip.vision.block_count"))
    hidden = read.whole("clip.vision.embedding_length")
    heads = read.whole("clip.vision.attention.head_count")
    return VisionConfig(
        hidden_size=hidden,
        intermediate_size=read.whole("clip.vision.feed_forward_length"),
        num_hidden_layers=read.whole("clip.vision.block_count"),
        num_attention_heads=heads,
        head_dim=max(1, hidden // heads),
        image_size=read.whole("clip.vision.image_size"),
        patch_size=read.whole("clip.vision.patch_size"),
        num_channels=patches.shape[1],
        rope_theta=read.real("clip.rope.freq_base", 10_000.0),
    )


def _merge_size(file: GgufFile, vision: VisionConfig) -> int:
    """Patches that merge to one token, along each side."""
    merged = _matrix(file, "mm.patch_merger.weight").shape[1] / vision.hidden_size
    size = _Metadata(file).whole("clip.vision.spatial_merge_size", max(1, round(merged**0.5)))
    if size**2 != merged:
        raise CheckpointError(
            f"{file.path} merges {size} x {size} patches by its metadata, and {merged:g} in all by "
            "its tensors. Fetch that file again."
        )
    return size


def _matrix(file: GgufFile, name: str, dimensions: int = 2) -> StoredTensor:
    found = file.tensors.get(name)
    if found is None or len(found.shape) != dimensions:
        raise CheckpointError(
            f"{file.path} lacks a usable {name}, which the model has. Fetch that file again."
        )
    return found
