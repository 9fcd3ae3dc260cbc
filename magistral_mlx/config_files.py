"""Reading a model's configuration from `config.json` or `params.json`.

Two formats are read: Hugging Face's `config.json` (nested, or flat for text-only models, with the
rope settings flat or under `rope_parameters`) and Mistral's own `params.json`. Both become a
`ModelConfig`, and nothing else in the project reads either file.

The file is longer than others because it knows every spelling of two formats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magistral_mlx.config import ModelConfig, QueryScaling, TextConfig, VisionConfig, Yarn
from magistral_mlx.errors import CheckpointError, UnsupportedModel

ARCHITECTURES = (
    "mistral3 (Magistral Small, Mistral Small 3.1/3.2, Devstral, Ministral 3) and text-only "
    "mistral and ministral3"
)

_DECODERS = ("mistral", "ministral3")

# Far above every model's, so that a damaged file can neither hang nor overflow what reads it.
_MOST_LAYERS = 1000
_LARGEST_SIZE = 2**31 - 1
_LARGEST_IMAGE = 2**15
_LARGEST_FLOAT = 1e30
_LARGEST_FILE = 64 << 20  # bytes of JSON; an index of 1000 layers has about 2 MB


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration of the checkpoint in `folder`.

    Raises:
        CheckpointError: no configuration there, or one that is damaged.
        UnsupportedModel: a model of another architecture.
    """
    for name, parse in (("config.json", config_from_hf), ("params.json", config_from_mistral)):
        path = folder / name
        if path.is_file():
            try:
                return _consistent(parse(read_json(path)))
            except (TypeError, AttributeError, ValueError, OverflowError) as error:
                raise CheckpointError(
                    f"{path} does not describe a model ({error}). Fetch the checkpoint again."
                ) from None
            except _Missing as error:
                raise CheckpointError(
                    f"{path} lacks a usable {error.key!r}; it does not describe a model "
                    "that can run. Fetch the checkpoint again."
                ) from None
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder. Name the folder of a checkpoint.")
    raise CheckpointError(
        f"{folder} is not a checkpoint: it has neither config.json nor params.json. "
        "Name the folder that holds them beside the .safetensors files."
    )


def config_from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """Parse Hugging Face's format (`config.json`).

    Raises:
        UnsupportedModel: a model of another architecture.
    """
    model_type = raw.get("model_type")
    if model_type == "mistral3":
        text, vision = raw.get("text_config"), raw.get("vision_config")
        if not isinstance(text, Mapping):
            raise _Missing("text_config")
        if text.get("model_type", "mistral") not in _DECODERS:
            raise _unsupported(f"a mistral3 with a {text.get('model_type')!r} decoder")
        tied = {"tie_word_embeddings": raw.get("tie_word_embeddings", False)}
        text = tied | dict(text)
    elif model_type in _DECODERS:
        text, vision = raw, None
    else:
        raise _unsupported(f"of type {model_type!r}")
    if raw.get("vision_feature_layer", -1) != -1:
        raise _unsupported(f"with vision_feature_layer {raw['vision_feature_layer']} (not -1)")
    return ModelConfig(
        text=_text_from_hf(text),
        vision=_vision_from_hf(vision) if vision else None,
        image_token_id=_image_token(raw),
        spatial_merge_size=_int(raw, "spatial_merge_size", 2),
        projector_bias=bool(raw.get("multimodal_projector_bias", False)),
    )


def config_from_mistral(raw: Mapping[str, Any]) -> ModelConfig:
    """Parse Mistral's own format (`params.json`).

    Raises:
        UnsupportedModel: a model of another architecture.
    """
    for key in ("moe", "q_lora_rank", "sliding_window"):
        if raw.get(key):
            raise _unsupported(f"with {key!r} in params.json")
    text = TextConfig(
        hidden_size=_int(raw, "dim"),
        intermediate_size=_int(raw, "hidden_dim"),
        num_hidden_layers=_int(raw, "n_layers", most=_MOST_LAYERS),
        num_attention_heads=_int(raw, "n_heads"),
        num_key_value_heads=_int(raw, "n_kv_heads"),
        head_dim=_int(raw, "head_dim"),
        vocab_size=_int(raw, "vocab_size"),
        max_position_embeddings=_int(
            raw, "max_position_embeddings", _int(raw, "max_seq_len", 131072)
        ),
        rms_norm_eps=_float(raw, "norm_eps"),
        rope_theta=_float(raw, "rope_theta"),
        tie_word_embeddings=bool(raw.get("tied_embeddings", False)),
        yarn=_yarn_from_mistral(raw.get("yarn")),
        query_scaling=_query_scaling_from_mistral(raw.get("llama_4_scaling")),
    )
    vision = raw.get("vision_encoder")
    if not vision:
        return ModelConfig(text=text, vision=None)
    if vision.get("mm_projector_id") != "patch_merge":
        raise _unsupported(f"with the projector {vision.get('mm_projector_id')!r}")
    return ModelConfig(
        text=text,
        vision=VisionConfig(
            hidden_size=_int(vision, "hidden_size"),
            intermediate_size=_int(vision, "intermediate_size"),
            num_hidden_layers=_int(vision, "num_hidden_layers", most=_MOST_LAYERS),
            num_attention_heads=_int(vision, "num_attention_heads"),
            head_dim=_int(vision, "hidden_size") // _int(vision, "num_attention_heads"),
            image_size=_int(
                vision, "max_image_size", vision.get("image_size"), most=_LARGEST_IMAGE
            ),
            patch_size=_int(vision, "patch_size"),
            num_channels=_int(vision, "num_channels", 3),
            rope_theta=_float(vision, "rope_theta"),
        ),
        image_token_id=_image_token(vision),
        spatial_merge_size=_int(vision, "spatial_merge_size", 2),
        projector_bias=bool(vision.get("adapter_bias", False)),
    )


def read_json(path: Path, *, advice: str = "Fetch the checkpoint again.") -> dict[str, Any]:
    """Read a JSON object from a file of a checkpoint, or of an adapter.

    Args:
        advice: what to do about a damaged file, as a sentence.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or is no object.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise CheckpointError(f"{path} is too large for a file of settings. {advice}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}.") from None
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply. {advice}") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). {advice}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object. {advice}")
    return value


class _Missing(Exception):
    """A key that is absent or has no usable value."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unsupported(what: str) -> UnsupportedModel:
    return UnsupportedModel(f"this checkpoint is {what}. This runtime runs {ARCHITECTURES}.")


def _int(
    raw: Mapping[str, Any], key: str, default: int | None = None, most: int = _LARGEST_SIZE
) -> int:
    """Read a positive size; an absent or null one is `default`."""
    value = raw.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise _Missing(key)
    return value


def _image_token(raw: Mapping[str, Any]) -> int:
    value = raw.get("image_token_index", raw.get("image_token_id", 10))
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _Missing("image_token_id")
    return value


def _consistent(config: ModelConfig) -> ModelConfig:
    """Check what the shapes of the tensors do not tell; raise `ValueError` where it is wrong."""
    text, vision = config.text, config.vision
    if text.num_attention_heads % text.num_key_value_heads:
        raise ValueError(
            f"{text.num_attention_heads} attention heads cannot share "
            f"{text.num_key_value_heads} key-value heads"
        )
    if text.head_dim % 2 or (vision and vision.head_dim % 4):
        raise ValueError("rope needs an even head_dim, and one divisible by 4 in the vision tower")
    if vision and vision.image_size < vision.patch_size * config.spatial_merge_size:
        raise ValueError(
            f"images of {vision.image_size} pixels are smaller than a merged patch of "
            f"{vision.patch_size * config.spatial_merge_size}"
        )
    return config


def _float(raw: Mapping[str, Any], key: str) -> float:
    value = raw.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _Missing(key)
    if not 0 < value < _LARGEST_FLOAT:  # false for NaN as well
        raise _Missing(key)
    return float(value)


def _optional_float(raw: Mapping[str, Any], key: str) -> float | None:
    value = raw.get(key)
    if value is None:
        return None
    if not isinstance(value, int | float) or not abs(value) < _LARGEST_FLOAT:
        raise _Missing(key)
    return value


def _rope_settings(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The nested rope settings: `rope_parameters`, or `rope_scaling` in older files."""
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _rope_theta(
    raw: Mapping[str, Any], kinds: tuple[str, ...], default: float | None = None
) -> float:
    nested = _rope_settings(raw)
    if _rope_kind(nested) not in kinds:
        raise _unsupported(f"with {_rope_kind(nested)!r} rope scaling")
    found = {"rope_theta": raw.get("rope_theta") or nested.get("rope_theta") or default}
    return _float(found, "rope_theta")


def _rope_kind(nested: Mapping[str, Any]) -> str:
    return str(nested.get("rope_type", nested.get("type", "default")))


def _yarn_from_hf(raw: Mapping[str, Any]) -> Yarn | None:
    nested = _rope_settings(raw)
    if _rope_kind(nested) != "yarn":
        return None
    original = _int(nested, "original_max_position_embeddings")
    stretched = {"factor": nested.get("factor") or raw["max_position_embeddings"] / original}
    return Yarn(
        factor=_float(stretched, "factor"),
        original_context=original,
        beta_fast=float(nested.get("beta_fast") or 32),
        beta_slow=float(nested.get("beta_slow") or 1),
        mscale=_optional_float(nested, "mscale"),
        mscale_all_dim=_optional_float(nested, "mscale_all_dim"),
        attention_factor=_optional_float(nested, "attention_factor"),
        truncate=bool(nested.get("truncate", True)),
    )


def _query_scaling_from_hf(raw: Mapping[str, Any]) -> QueryScaling | None:
    nested = _rope_settings(raw)
    if not nested.get("llama_4_scaling_beta"):
        return None
    return QueryScaling(
        _float(nested, "llama_4_scaling_beta"), _int(nested, "original_max_position_embeddings")
    )


def _yarn_from_mistral(raw: Mapping[str, Any] | None) -> Yarn | None:
    """Parse `yarn`: `alpha` and `beta` are the slow and the fast bound; attention is scaled with
    the factor only if `apply_scale` is set."""
    if not raw:
        return None
    return Yarn(
        factor=_float(raw, "factor"),
        original_context=_int(raw, "original_max_position_embeddings"),
        beta_fast=_float(raw, "beta"),
        beta_slow=_float(raw, "alpha"),
        mscale=1.0,
        mscale_all_dim=0.0 if raw.get("apply_scale", True) else 1.0,
    )


def _query_scaling_from_mistral(raw: Mapping[str, Any] | None) -> QueryScaling | None:
    if not raw:
        return None
    return QueryScaling(_float(raw, "beta"), _int(raw, "original_max_position_embeddings"))


def _text_from_hf(raw: Mapping[str, Any]) -> TextConfig:
    if raw.get("sliding_window"):
        raise _unsupported("with sliding-window attention")
    if raw.get("hidden_act", "silu") != "silu":
        raise _unsupported(f"with the activation {raw['hidden_act']!r}")
    heads = _int(raw, "num_attention_heads")
    return TextConfig(
        hidden_size=_int(raw, "hidden_size"),
        intermediate_size=_int(raw, "intermediate_size"),
        num_hidden_layers=_int(raw, "num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=_int(raw, "num_key_value_heads", heads),
        head_dim=_int(raw, "head_dim", _int(raw, "hidden_size") // heads),
        vocab_size=_int(raw, "vocab_size"),
        max_position_embeddings=_int(raw, "max_position_embeddings"),
        rms_norm_eps=_float(raw, "rms_norm_eps"),
        rope_theta=_rope_theta(raw, ("default", "yarn")),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        yarn=_yarn_from_hf(raw),
        query_scaling=_query_scaling_from_hf(raw),
    )


def _vision_from_hf(raw: Mapping[str, Any]) -> VisionConfig:
    if raw.get("model_type", "pixtral") != "pixtral":
        raise _unsupported(f"with a {raw['model_type']!r} vision tower")
    if raw.get("hidden_act", "silu") != "silu":
        raise _unsupported(f"with the vision activation {raw['hidden_act']!r}")
    heads = _int(raw, "num_attention_heads")
    return VisionConfig(
        hidden_size=_int(raw, "hidden_size"),
        intermediate_size=_int(raw, "intermediate_size"),
        num_hidden_layers=_int(raw, "num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        head_dim=_int(raw, "head_dim", _int(raw, "hidden_size") // heads),
        image_size=_int(raw, "image_size", most=_LARGEST_IMAGE),
        patch_size=_int(raw, "patch_size"),
        num_channels=_int(raw, "num_channels", 3),
        rope_theta=_rope_theta(raw, ("default", "axial"), default=10000.0),
    )
