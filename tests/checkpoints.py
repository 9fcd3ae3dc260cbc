"""Tiny random checkpoints of this architecture, in every layout that is read.

The same seed gives the same model whatever the layout, so a test may write it twice and compare.
Names and the row order of Mistral's layout are spelled out here on purpose, not taken from the
package: they are the other side of the comparison.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.tekken import write_tekken

Names = Literal["classic", "new"]
Weights = dict[str, NDArray[np.float32]]

_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

RANKS = 280  # of the tokenizer; with its 1000 special ids a vocabulary of 1280
SYSTEM_PROMPT = "Think first.\n\n[THINK]Your thoughts[/THINK]Then answer."
GENERATION = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}


def tiny_config(
    *, vision: bool = True, layers: int = 3, names: Names = "classic", **text: Any
) -> dict[str, Any]:
    """A config.json whose dimensions are multiples of 128. `text` overrides decoder settings.

    Without vision it is a flat `mistral` one, as text-only checkpoints have it. `new` spells it
    as transformers 5 does.
    """
    decoder: dict[str, Any] = {
        "model_type": "mistral",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,  # 4 x 64 is not hidden_size
        "rms_norm_eps": 1e-5,
        "vocab_size": 1000 + RANKS,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
    }
    tower: dict[str, Any] = {
        "model_type": "pixtral",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 64,
        "image_size": 1540,
        "patch_size": 14,
        "num_channels": 3,
        "hidden_act": "silu",
    }
    dtype = {"dtype" if names == "new" else "torch_dtype": "bfloat16"}
    _set_rope(decoder, 1e6, "default", names)
    _set_rope(tower, 1e4, "axial", names)
    decoder |= text
    if not vision:
        return {"architectures": ["MistralForCausalLM"], **decoder, **dtype}
    return {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "model_type": "mistral3",
        "image_token_index": 10,
        "spatial_merge_size": 2,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "tie_word_embeddings": False,
        "text_config": decoder,
        "vision_config": tower,
        **dtype,
    }


def random_weights(config: Mapping[str, Any], seed: int) -> Weights:
    """Canonical name -> float32 values that bfloat16 holds exactly; half-split rope order."""
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for name, shape in _shapes(config):
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            values = 1 + 0.1 * values  # a norm
        else:
            values *= np.float32(np.prod(shape[1:]) ** -0.5)
        weights[name] = _as_bfloat16(values)
    return weights


def write_hf_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    names: Names = "classic",
    shards: int = 2,
    config: dict[str, Any] | None = None,
    weights: Weights | None = None,
    dtype: str = "bfloat16",
) -> Path:
    """Write `model-0000N-of-0000M.safetensors`, their index and all that stands beside them."""
    config = config or tiny_config(names=names)
    weights = random_weights(config, seed) if weights is None else weights
    stored = {_hf_name(name, config, names): values for name, values in weights.items()}
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_split(stored, shards), 1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, {name: stored[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    total = sum(values.size for values in stored.values()) * (4 if dtype == "float32" else 2)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", GENERATION)
    _write_texts(folder)
    return folder


def write_mistral_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    weights: Weights | None = None,
    shards: int = 1,
) -> Path:
    """Write the same model as `consolidated*.safetensors` and `params.json`."""
    config = config or tiny_config()
    weights = random_weights(config, seed) if weights is None else weights
    stored = {
        _mistral_name(name): _interleave(name, values, config) for name, values in weights.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(_split(stored, shards), 1):
        file = "consolidated" if shards == 1 else f"consolidated-{number:05d}-of-{shards:05d}"
        write_safetensors(folder / f"{file}.safetensors", {name: stored[name] for name in part})
    _write_json(folder / "params.json", params_of(config))
    _write_texts(folder)
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, Any], dtype: str = "bfloat16") -> None:
    """Write float32 arrays as bfloat16, float16 or float32."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in sorted(tensors):
        values = _encode(tensors[name], dtype)
        offsets = [len(data), len(data) + len(values)]
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": offsets,
        }
        data += values
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def params_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The params.json of a config.json, as Mistral spells it."""
    text, vision = _parts(config)
    params: dict[str, Any] = {
        "dim": text["hidden_size"],
        "n_layers": text["num_hidden_layers"],
        "head_dim": text["head_dim"],
        "hidden_dim": text["intermediate_size"],
        "n_heads": text["num_attention_heads"],
        "n_kv_heads": text["num_key_value_heads"],
        "norm_eps": text["rms_norm_eps"],
        "vocab_size": text["vocab_size"],
        "rope_theta": _rope_theta(text),
        "max_position_embeddings": text["max_position_embeddings"],
        "tied_embeddings": text["tie_word_embeddings"],
    }
    if text.get("rope_parameters", {}).get("rope_type") == "yarn":
        params |= _stretched(text["rope_parameters"])
    if vision:
        params["vision_encoder"] = {
            "hidden_size": vision["hidden_size"],
            "num_channels": vision["num_channels"],
            "image_size": vision["image_size"],
            "max_image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "rope_theta": _rope_theta(vision),
            "intermediate_size": vision["intermediate_size"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "num_attention_heads": vision["num_attention_heads"],
            "adapter_bias": False,
            "mm_projector_id": "patch_merge",
            "spatial_merge_size": config["spatial_merge_size"],
            "add_pre_mm_projector_layer_norm": True,
            "image_token_id": 10,
            "image_break_token_id": 12,
            "image_end_token_id": 13,
        }
    return params


def _stretched(rope: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of Ministral 3's rope and queries, as params.json has them."""
    original = {"original_max_position_embeddings": rope["original_max_position_embeddings"]}
    yarn = {
        "factor": rope["factor"],
        "beta": rope["beta_fast"],
        "alpha": rope["beta_slow"],
        "apply_scale": not rope["mscale_all_dim"],
    }
    scaling = {"beta": rope["llama_4_scaling_beta"]}
    return {"yarn": original | yarn, "llama_4_scaling": original | scaling}


def _parts(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    return config.get("text_config", config), config.get("vision_config")


def _set_rope(part: dict[str, Any], theta: float, kind: str, names: Names) -> None:
    if names == "new":
        part["rope_parameters"] = {"rope_type": kind, "rope_theta": theta}
    else:
        part["rope_theta"] = theta


def _rope_theta(part: Mapping[str, Any]) -> float:
    return float(part.get("rope_theta") or part["rope_parameters"]["rope_theta"])


def _shapes(config: Mapping[str, Any]) -> Iterable[tuple[str, tuple[int, ...]]]:
    text, vision = _parts(config)
    dim, mlp = text["hidden_size"], text["intermediate_size"]
    queries = text["num_attention_heads"] * text["head_dim"]
    keys = text["num_key_value_heads"] * text["head_dim"]
    yield "language_model.model.embed_tokens.weight", (text["vocab_size"], dim)
    for n in range(text["num_hidden_layers"]):
        layer = f"language_model.model.layers.{n}."
        yield layer + "input_layernorm.weight", (dim,)
        yield layer + "self_attn.q_proj.weight", (queries, dim)
        yield layer + "self_attn.k_proj.weight", (keys, dim)
        yield layer + "self_attn.v_proj.weight", (keys, dim)
        yield layer + "self_attn.o_proj.weight", (dim, queries)
        yield layer + "post_attention_layernorm.weight", (dim,)
        yield layer + "mlp.gate_proj.weight", (mlp, dim)
        yield layer + "mlp.up_proj.weight", (mlp, dim)
        yield layer + "mlp.down_proj.weight", (dim, mlp)
    yield "language_model.model.norm.weight", (dim,)
    if not text["tie_word_embeddings"]:
        yield "language_model.lm_head.weight", (text["vocab_size"], dim)
    if vision:
        yield from _vision_shapes(config, vision, dim)


def _vision_shapes(
    config: Mapping[str, Any], vision: Mapping[str, Any], text_dim: int
) -> Iterable[tuple[str, tuple[int, ...]]]:
    dim, mlp, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    yield "vision_tower.patch_conv.weight", (dim, vision["num_channels"], patch, patch)
    yield "vision_tower.ln_pre.weight", (dim,)
    for n in range(vision["num_hidden_layers"]):
        layer = f"vision_tower.transformer.layers.{n}."
        yield layer + "attention_norm.weight", (dim,)
        for part in ("q", "k", "v", "o"):
            yield layer + f"attention.{part}_proj.weight", (dim, dim)
        yield layer + "ffn_norm.weight", (dim,)
        yield layer + "feed_forward.gate_proj.weight", (mlp, dim)
        yield layer + "feed_forward.up_proj.weight", (mlp, dim)
        yield layer + "feed_forward.down_proj.weight", (dim, mlp)
    merged = dim * config["spatial_merge_size"] ** 2
    yield "multi_modal_projector.norm.weight", (dim,)
    yield "multi_modal_projector.patch_merger.merging_layer.weight", (dim, merged)
    yield "multi_modal_projector.linear_1.weight", (text_dim, dim)
    yield "multi_modal_projector.linear_2.weight", (text_dim, text_dim)


def _hf_name(name: str, config: Mapping[str, Any], names: Names) -> str:
    if "text_config" not in config:  # a text-only model has no language_model
        return name.removeprefix("language_model.")
    if names == "classic":
        return name
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    return "model." + name.replace("language_model.model.", "language_model.")


_MISTRAL_NAMES = (
    (r"^language_model\.model\.embed_tokens", "tok_embeddings"),
    (r"^language_model\.model\.", ""),
    (r"^language_model\.lm_head", "output"),
    (r"^vision_tower\.", "vision_encoder."),
    (r"^multi_modal_projector\.norm", "pre_mm_projector_norm"),
    (r"^multi_modal_projector\.linear_1", "vision_language_adapter.w_in"),
    (r"^multi_modal_projector\.linear_2", "vision_language_adapter.w_out"),
    (r"^multi_modal_projector\.", ""),
    (r"\.self_attn\.", ".attention."),
    (r"\.mlp\.", ".feed_forward."),
    (r"\.input_layernorm\.", ".attention_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.attention\.(\w)_proj\.", r".attention.w\1."),
    (r"\.feed_forward\.gate_proj\.", ".feed_forward.w1."),
    (r"\.feed_forward\.down_proj\.", ".feed_forward.w2."),
    (r"\.feed_forward\.up_proj\.", ".feed_forward.w3."),
)


def _mistral_name(name: str) -> str:
    for pattern, spelling in _MISTRAL_NAMES:
        name = re.sub(pattern, spelling, name)
    return name


def _interleave(
    name: str, values: NDArray[np.float32], config: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Query and key rows from halves (a0 a1 … b0 b1 …) to pairs (a0 b0 a1 b1 …), head by head."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    text, vision = _parts(config)
    part = vision if name.startswith("vision_tower") else text
    assert part is not None
    halves = values.reshape(-1, 2, part["head_dim"] // 2, values.shape[1])
    return halves.transpose(0, 2, 1, 3).reshape(values.shape)


def _split(stored: Mapping[str, Any], shards: int) -> list[list[str]]:
    names = list(stored)
    size = -(-len(names) // shards)
    return [names[start : start + size] for start in range(0, len(names), size)]


def _as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def _encode(values: NDArray[np.float32], dtype: str) -> bytes:
    if dtype == "bfloat16":
        return (_as_bfloat16(values).view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"float16": "<f2", "float32": "<f4"}[dtype]).tobytes()


def _write_texts(folder: Path) -> None:
    (folder / "SYSTEM_PROMPT.txt").write_text(SYSTEM_PROMPT, encoding="utf-8")
    write_tekken(folder / "tekken.json", RANKS)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")
