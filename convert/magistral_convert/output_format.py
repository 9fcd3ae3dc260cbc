"""Tensor names and config.json of the output, in the spelling that every MLX runtime reads.

mlx-lm and mlx-vlm agree with our canonical names in the decoder and the projector. The vision
tower is spelled as mlx-vlm's modules are, with its patch convolution channels last: before 0.6.4
mlx-vlm renamed nothing in a file marked `format: mlx`, and later versions accept both. A text-only
model of type `mistral` has no `language_model.` in front, as in transformers and mlx-lm.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from magistral_mlx.checkpoint.names import LANGUAGE, VISION
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.quantization import Quantization

DTYPE = "bfloat16"
METADATA = "magistral_mlx"  # key of config.json, which other runtimes pass over


def output_name(name: str, *, flat: bool) -> str:
    """Return the output's spelling of a canonical tensor name or module path.

    `flat`: the output is a text-only `mistral`, whose config.json is not nested.
    """
    if flat:
        return name.removeprefix(LANGUAGE)
    if name.startswith(VISION):
        return VISION + "vision_model." + name.removeprefix(VISION)
    return name


def is_flat(source: Mapping[str, Any] | None, config: ModelConfig) -> bool:
    """Return whether the output is a text-only `mistral` or `ministral3`.

    `source` is the source's config.json, None where it has only params.json.
    """
    if source is None:
        return config.vision is None
    return source.get("model_type") != "mistral3"


def output_config(
    source: Mapping[str, Any] | None, config: ModelConfig, quantization: dict[str, Any]
) -> dict[str, Any]:
    """Build config.json of the output from that of the source.

    Defaults that runtimes fill in differently are written out (newer files nest rope_theta where
    mlx-lm and mlx-vlm do not look), the dtype is that of the output, and the vision part is
    removed where the checkpoint has no vision tower. What tells of the source's own weights, how
    they are quantized and an earlier conversion's quality, is left out.
    """
    raw: dict[str, Any] = copy.deepcopy(dict(source)) if source is not None else {}
    for key in ("_name_or_path", "quantization", "quantization_config", METADATA):
        raw.pop(key, None)
    flat = is_flat(source, config)
    if flat:
        _fill_text(raw, config)
    else:
        _fill_multimodal(raw, config)
    _set_dtype(raw)
    if quantization:
        raw["quantization"] = quantization
        raw["quantization_config"] = quantization  # where the hub's pages look for it
    return dict(sorted(raw.items()))


def quantization_entry(
    base: Quantization | None, schemes: Mapping[str, Quantization | None], *, flat: bool
) -> dict[str, Any]:
    """Build config.json's `quantization`: the base scheme, then exceptions by module path.

    Args:
        base: None where nothing is quantized; the entry is empty then.
        schemes: of each tensor that could be quantized, by canonical name.
    """

    def entry(scheme: Quantization) -> dict[str, Any]:
        return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}

    if base is None:
        return {}
    exceptions: dict[str, Any] = {}
    for name, scheme in sorted(schemes.items()):
        if scheme != base:
            path = output_name(name.removesuffix(".weight"), flat=flat)
            exceptions[path] = entry(scheme) if scheme else False
    return entry(base) | exceptions


def _fill_multimodal(raw: dict[str, Any], config: ModelConfig) -> None:
    raw.setdefault("architectures", ["Mistral3ForConditionalGeneration"])
    raw["model_type"] = "mistral3"
    raw["text_config"] = dict(raw.get("text_config") or {})
    _fill_text(raw["text_config"], config)
    raw["text_config"].pop("architectures", None)
    raw["tie_word_embeddings"] = config.text.tie_word_embeddings
    raw["image_token_index"] = config.image_token_id
    raw["spatial_merge_size"] = config.spatial_merge_size
    raw["multimodal_projector_bias"] = config.projector_bias
    raw.setdefault("projector_hidden_act", "gelu")
    raw.setdefault("vision_feature_layer", -1)
    if config.vision is None:
        raw.pop("vision_config", None)
        return
    vision = dict(raw.get("vision_config") or {})
    vision.setdefault("model_type", "pixtral")
    vision.setdefault("hidden_act", "silu")
    vision |= asdict(config.vision)
    del vision["rms_norm_eps"]  # fixed by the architecture
    raw["vision_config"] = vision


def _fill_text(text: dict[str, Any], config: ModelConfig) -> None:
    family = "Ministral3" if config.text.query_scaling else "Mistral"
    text.setdefault("architectures", [f"{family}ForCausalLM"])
    text.setdefault("hidden_act", "silu")
    text.setdefault("sliding_window", None)
    text |= asdict(config.text)
    del text["yarn"], text["query_scaling"]  # written to rope_parameters
    text["model_type"] = family.lower()
    if config.text.yarn or config.text.query_scaling:
        text.pop("rope_scaling", None)
        text["rope_parameters"] = _rope_parameters(config.text)


def _rope_parameters(text: TextConfig) -> dict[str, Any]:
    """Build `rope_parameters` as transformers and mlx-lm read them."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": text.rope_theta}
    if yarn := text.yarn:
        values = asdict(yarn)
        values["original_max_position_embeddings"] = values.pop("original_context")
        # What the source leaves out stays out: all readers have the same defaults.
        found |= {key: value for key, value in values.items() if value is not None}
        found["rope_type"] = "yarn"
    if scaling := text.query_scaling:
        found["llama_4_scaling_beta"] = scaling.beta
        found["original_max_position_embeddings"] = scaling.original_context
    return found


def _set_dtype(raw: dict[str, Any]) -> None:
    """Set every dtype entry to that of the output; the newer spelling is always written."""
    raw["dtype"] = DTYPE
    for part in (raw, raw.get("text_config"), raw.get("vision_config")):
        for key in ("dtype", "torch_dtype"):
            if part and key in part:
                part[key] = DTYPE
