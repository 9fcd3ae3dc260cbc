"""Checkpoints with FP8 weights as they are published, quantized by torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Granularity = Literal["tensor", "row", "block"]
Spelling = Literal["transformers", "compressed-tensors", "mistral"]

_BLOCK = 128
_SCALES: dict[Spelling, tuple[str, str]] = {
    "transformers": ("weight_scale_inv", "activation_scale"),
    "compressed-tensors": ("weight_scale", "input_scale"),
    "mistral": ("qscale_weight", "qscale_act"),
}
_CONFIGS: dict[Spelling, dict[str, Any]] = {
    "transformers": {"quant_method": "fp8", "activation_scheme": "static"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
    },
    "mistral": {},
}


def quantize_folder(
    source: Path,
    target: Path,
    *,
    granularity: Granularity = "tensor",
    spelling: Spelling = "transformers",
    scale_dtype: torch.dtype = torch.bfloat16,
    edit: Callable[[dict[str, torch.Tensor]], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Quantize the decoder's layers of the checkpoint in `source` and write it to `target`.

    `edit` may change the stored tensors. Returns each as torch dequantizes it, in float32.
    """
    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    values: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        stored: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(file).items():
            values[name] = tensor.float()
            stored[name] = tensor
            if _is_quantized(name, tensor):
                codes, scale, values[name] = quantize(tensor, granularity, scale_dtype)
                weight, activation = _SCALES[spelling]
                module = name.removesuffix("weight")
                stored |= {name: codes, module + weight: scale}
                stored[module + activation] = torch.tensor(0.25, dtype=torch.bfloat16)
        if edit is not None:
            edit(stored)
        save_file(
            {name: tensor.contiguous() for name, tensor in stored.items()}, target / file.name
        )
    (target / "model.safetensors.index.json").unlink(missing_ok=True)
    config = target / "config.json"
    if config.is_file() and _CONFIGS[spelling]:
        content = json.loads(config.read_text()) | {"quantization_config": _CONFIGS[spelling]}
        config.write_text(json.dumps(content))
    return values


def quantize(
    weight: torch.Tensor, granularity: Granularity, scale_dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scale, and their product in float32, of a matrix (out, in)."""
    rows, columns = weight.shape
    height, width = {"tensor": (rows, columns), "row": (1, columns), "block": (_BLOCK, _BLOCK)}[
        granularity
    ]
    down, across = -(-rows // height), -(-columns // width)
    padded = torch.zeros(down * height, across * width)
    padded[:rows, :columns] = weight.float()
    largest = padded.reshape(down, height, across, width).abs().amax(dim=(1, 3))
    scale = (largest / 448).clamp(min=1e-8).to(scale_dtype)
    factors = scale.float().repeat_interleave(height, 0).repeat_interleave(width, 1)
    factors = factors[:rows, :columns]
    codes = (weight.float() / factors).clamp(-448, 448).to(torch.float8_e4m3fn)
    shape = {"tensor": (), "row": (rows, 1), "block": (down, across)}[granularity]
    return codes, scale.reshape(shape), codes.float() * factors


def _is_quantized(name: str, tensor: torch.Tensor) -> bool:
    return "layers." in name and tensor.dim() == 2 and "vision" not in name
