"""The adapter_config.json of PEFT and of mlx-lm: what scales each matrix.

PEFT keeps adapter_model.safetensors beside it, mlx-lm adapters.safetensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from magistral_mlx.config_files import read_json
from magistral_mlx.errors import CheckpointError

CONFIG = "adapter_config.json"
PEFT_WEIGHTS, MLX_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"

# PEFT's settings that change what the matrices mean, and what to do about each.
_REFUSED = {
    "fan_in_fan_out": "it is for transposed matrices, which this model does not have",
    "layer_replication": "it repeats layers, which makes another model",
    "alora_invocation_tokens": "it is an activated LoRA, which begins in the middle of a prompt",
    "use_qalora": "it is a QA-LoRA, whose inputs are pooled",
    "lora_bias": "it adds biases, which this model does not have",
}
_INITIALIZED = ("pissa", "olora", "corda", "loftq")  # ways that change the base's weights


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of an adapter.

    base: the model that it was trained on, as it says. file: its weights. scale: of mlx-lm's.
    alpha: of PEFT's, divided by the rank (by its root with `rslora`); alpha_pattern: others by
    regular expressions of modules.
    """

    layout: Literal["peft", "mlx"]
    file: Path
    base: str | None
    scale: float = 1.0
    alpha: float = 1.0
    rslora: bool = False
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def scale_of(self, module: str, rank: int) -> float:
        """The factor of a module's change, by its name in the file without PEFT's prefix."""
        if self.layout == "mlx":
            return self.scale
        alpha = self.alpha
        for pattern, other in self.alpha_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = other
                break
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read the adapter_config.json of a folder.

    Raises:
        CheckpointError: no adapter, or one of another kind.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not an adapter: it has no {CONFIG}. Name the folder that PEFT or mlx-lm "
            "wrote."
        )
    raw = read_json(path, advice="Fetch or save the adapter again.")
    is_peft = "peft_type" in raw
    file = folder / (PEFT_WEIGHTS if is_peft else MLX_WEIGHTS)
    if not file.is_file():
        raise CheckpointError(_without_weights(folder, file))
    return _peft(raw, path, file) if is_peft else _mlx(raw, path, file)


def _without_weights(folder: Path, file: Path) -> str:
    if (folder / "adapter_model.bin").is_file():
        return (
            f"{folder} holds adapter_model.bin, a pickle, which may run code when it is read. Save "
            "the adapter with safe_serialization=True."
        )
    return f"{folder} lacks {file.name}, the weights of the adapter. Fetch or save it again."


def _peft(raw: Mapping[str, Any], path: Path, file: Path) -> AdapterConfig:
    if raw["peft_type"] != "LORA":
        raise CheckpointError(
            f"{path} is an adapter of the type {str(raw['peft_type'])[:40]!r}; LORA is supported, "
            "with DoRA. Train one of that type."
        )
    for name, why in _REFUSED.items():
        if raw.get(name):
            raise CheckpointError(f"{path} sets {name}: {why}. It cannot be used here.")
    way = raw.get("init_lora_weights")
    if isinstance(way, str) and way.lower().startswith(_INITIALIZED):
        raise CheckpointError(
            f"{path} says init_lora_weights={way!r}, which changed the weights of its base. Save "
            "it as a plain LoRA, with path_initial_model_for_weight_conversion."
        )
    patterns = raw.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise _not_a(path, "alpha_pattern", patterns, "an object")
    return AdapterConfig(
        "peft",
        file,
        _base(raw.get("base_model_name_or_path")),
        alpha=_number(path, "lora_alpha", raw.get("lora_alpha", 8)),
        rslora=bool(raw.get("use_rslora")),
        alpha_pattern={
            _pattern(path, pattern): _number(path, "alpha_pattern", alpha)
            for pattern, alpha in patterns.items()
        },
    )


def _mlx(raw: Mapping[str, Any], path: Path, file: Path) -> AdapterConfig:
    kind = raw.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise CheckpointError(
            f"{path} says fine_tune_type={str(kind)[:40]!r}, which is no adapter: it holds whole "
            "matrices. Fuse it with mlx_lm.fuse, and load or convert the result."
        )
    parameters = raw.get("lora_parameters")
    if not isinstance(parameters, dict):
        raise CheckpointError(
            f"{path} is neither PEFT's (it has no peft_type) nor mlx-lm's (no lora_parameters). "
            "Name the folder that one of them wrote."
        )
    scale = _number(path, "lora_parameters.scale", parameters.get("scale"))
    return AdapterConfig("mlx", file, _base(raw.get("model")), scale=scale)


def _base(name: object) -> str | None:
    return name[:200] if isinstance(name, str) and name else None


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _not_a(path, name, value, "a finite number")
    return float(value)


def _pattern(path: Path, pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error:
        raise _not_a(path, "alpha_pattern", pattern, "a regular expression") from None
    return pattern


def _not_a(path: Path, name: str, value: object, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path} says {name}={str(value)[:60]!r}; expected {expected}. Save the adapter again."
    )
