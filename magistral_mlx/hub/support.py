"""Checks of whether a checkpoint is supported, by its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magistral_mlx.config import ModelConfig
from magistral_mlx.config_files import read_config, read_json
from magistral_mlx.errors import UnsupportedModel
from magistral_mlx.hub.base_models import bfloat16_repository

TEKKEN_VOCABULARY = 131_072


def check_supported(folder: Path) -> ModelConfig:
    """Read the configuration in `folder` and check that this runtime supports it.

    Raises:
        CheckpointError: no configuration there, or one that is damaged.
        UnsupportedModel: another architecture, weights in another library's packed format, or a
            tokenizer other than Tekken.
    """
    config = read_config(folder)
    check_weight_format(folder)
    if config.text.vocab_size != TEKKEN_VOCABULARY and not (folder / "tekken.json").is_file():
        raise UnsupportedModel(
            f"{folder} is a Mistral model from before the Tekken tokenizer (vocabulary "
            f"{config.text.vocab_size:,}, not {TEKKEN_VOCABULARY:,}). This runtime runs Tekken "
            "models, such as mistralai/Magistral-Small-2509."
        )
    return config


def check_weight_format(folder: Path) -> None:
    """Check that the weights are not quantized by another library, if a configuration is there.

    Raises:
        CheckpointError: a configuration that is damaged.
        UnsupportedModel: a format that is not read, with the name of a repository in bfloat16.
    """
    path = folder / "config.json"
    method = _foreign_format(read_json(path)) if path.is_file() else None
    if method is not None:
        raise UnsupportedModel(
            f"{folder} holds weights in the {method} format, which this runtime does not read. "
            f"Take {bfloat16_repository(folder)} in bfloat16 instead."
        )


def stored_bits(folder: Path) -> int | None:
    """Return the bits of an MLX quantization; None for weights that are loaded as floats."""
    path = folder / "config.json"
    raw = read_json(path) if path.is_file() else {}
    for key in ("quantization", "quantization_config"):
        entry = raw.get(key)
        bits = entry.get("bits") if isinstance(entry, Mapping) else None
        if isinstance(bits, int):
            return bits
    return None


def _foreign_format(raw: Mapping[str, Any]) -> str | None:
    """Return the name of another library's quantization; None for FP8 and for what MLX stores."""
    entry = raw.get("quantization_config")
    if not isinstance(entry, Mapping):
        return None
    method = entry.get("quant_method")
    if method is None or method == "fp8" or _is_compressed_fp8(entry):
        return None
    return str(method)


def _is_compressed_fp8(entry: Mapping[str, Any]) -> bool:
    """Return whether all groups of compressed-tensors are FP8 weights."""
    groups = entry.get("config_groups")
    if entry.get("quant_method") != "compressed-tensors" or not isinstance(groups, Mapping):
        return False
    weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    return bool(weights) and all(
        isinstance(weight, Mapping) and (weight.get("type"), weight.get("num_bits")) == ("float", 8)
        for weight in weights
    )
