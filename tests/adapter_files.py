"""Random LoRA adapters for checkpoints of `tests.checkpoints`, as PEFT and mlx-lm write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import write_safetensors

TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj")


def write_peft_adapter(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    layers: int = 3,
    size: float = 0.5,
    targets: Mapping[str, tuple[int, int]] | None = None,
    **config: Any,
) -> Path:
    """Write an adapter of all layers of a tiny model.

    Args:
        targets: (out, in) of each matrix of a layer; None for those of `tiny_config`.
        config: other settings of adapter_config.json.
    """
    rng = np.random.default_rng(seed)
    targets = targets or dict(
        zip(TARGETS, [(256, 128), (128, 128), (256, 128), (128, 256)], strict=True)
    )
    tensors = {}
    for layer in range(layers):
        for target, (out, inner) in targets.items():
            path = f"base_model.model.model.language_model.layers.{layer}.{target}"
            a = rng.standard_normal((rank, inner), dtype=np.float32) * inner**-0.5
            b = rng.standard_normal((out, rank), dtype=np.float32) * size * rank**-0.5
            tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = a, b
    return write_adapter(folder, tensors, r=rank, lora_alpha=2 * rank, **config)


def write_adapter(folder: Path, tensors: Mapping[str, Any], **config: Any) -> Path:
    """Write tensors by name, and settings over those of a plain LoRA."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors, "float32")
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": "somebody/base",
        "r": 4,
        "lora_alpha": 8,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
