"""Checks of whether a checkpoint is supported, by its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magistral_mlx.config import ModelConfig
from magistral_mlx.config_files import read_config, read_json
from magistral_mlx.errors import UnsupportedModel

TEKKEN_VOCABULARY = 131_072


def check_supported(folder: Path) -> ModelConfig:
    """Read the configuration in `folder` and check that this runtime supports it.

    Raises:
        CheckpointError: no configuration there, or one that is damaged.
        UnsupportedModel: another architecture, weights in another library's packed format, or a
            tokenizer other than Tekken.
    """
    config = read_config(folder)
    path = folder / "config.json"
    raw = read_json(path) if path.is_file() else {}
    if (method := _foreign_format(raw)) is not None:
        raise UnsupportedModel(
            f"{folder} holds weights in the {method} format. This runtime reads bfloat16, float16, "
            "float32 and MLX's quantized formats: take the repository that holds one of those."
        )
    if config.text.vocab_size != TEKKEN_VOCABULARY and not (folder / "tekken.json").is_file():
        raise UnsupportedModel(
            f"{folder} is a Mistral model from before the Tekken tokenizer (vocabulary "
            f"{config.text.vocab_size:,}, not {TEKKEN_VOCABULARY:,}). This runtime runs Tekken "
            "models, such as mistralai/Magistral-Small-2509."
        )
    return config


def stored_bits(folder: Path) -> int | None:
    """Return the bits of an MLX quantization; None for floating-point weights."""
    path = folder / "config.json"
    raw = read_json(path) if path.is_file() else {}
    for key in ("quantization", "quantization_config"):
        entry = raw.get(key)
        bits = entry.get("bits") if isinstance(entry, Mapping) else None
        if isinstance(bits, int):
            return bits
    return None


def _foreign_format(raw: Mapping[str, Any]) -> str | None:
    entry = raw.get("quantization_config")
    method = entry.get("quant_method") if isinstance(entry, Mapping) else None
    return None if method is None else str(method)
