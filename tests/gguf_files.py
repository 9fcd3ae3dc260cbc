"""GGUF files of the tiny models in `tests.checkpoints`, written with llama.cpp's `gguf` package.

Names, metadata and the order of rows are spelled out as llama.cpp's converter writes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from tests.checkpoints import Weights
from tests.data import GGUF

KindOf = Callable[[str], str]  # name of a tensor in the file -> its type
Change = Callable[[str, NDArray[Any], Type], tuple[NDArray[Any], Type]]  # name, data and type
BLOCK_TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS",
)  # fmt: skip

# Where the float16 scales of a block lie, for blocks of random bytes.
_SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip
_TEXT = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_TOWER = {
    "attention.q_proj": "attn_q", "attention.k_proj": "attn_k", "attention.v_proj": "attn_v",
    "attention.o_proj": "attn_out", "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up", "feed_forward.down_proj": "ffn_down",
    "attention_norm": "ln1", "ffn_norm": "ln2",
}  # fmt: skip
_OTHERS = {
    "language_model.model.embed_tokens.weight": "token_embd.weight",
    "language_model.model.norm.weight": "output_norm.weight",
    "language_model.lm_head.weight": "output.weight",
    "vision_tower.patch_conv.weight": "v.patch_embd.weight",
    "vision_tower.ln_pre.weight": "v.pre_ln.weight",
    "multi_modal_projector.norm.weight": "mm.input_norm.weight",
    "multi_modal_projector.patch_merger.merging_layer.weight": "mm.patch_merger.weight",
    "multi_modal_projector.linear_1.weight": "mm.1.weight",
    "multi_modal_projector.linear_2.weight": "mm.2.weight",
}


def random_blocks(kind: str, rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """(rows, bytes of a row): any codes, and scales that keep weights below about 1."""
    rng = np.random.default_rng(seed)
    size, nbytes = gguf.GGML_QUANT_SIZES[Type[kind]]
    blocks = rng.integers(0, 256, (rows * columns // size, nbytes), dtype=np.uint8)
    for place in _SCALES[kind]:
        scales = (rng.uniform(0.1, 1, len(blocks)) / 4096).astype(np.float16)
        blocks[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def write_text_gguf(
    path: Path, config: Mapping[str, Any], weights: Weights, kind_of: KindOf, **metadata: Any
) -> Weights:
    """Write the decoder of a model; `metadata` adds pairs or replaces those of the configuration.

    Returns the weights as the file has them, dequantized, by canonical name in half-split order.
    """
    text = config.get("text_config", config)
    rope = text.get("rope_theta") or text["rope_parameters"]["rope_theta"]
    pairs: dict[str, Any] = {
        "mistral3.block_count": text["num_hidden_layers"],
        "mistral3.context_length": text["max_position_embeddings"],
        "mistral3.embedding_length": text["hidden_size"],
        "mistral3.feed_forward_length": text["intermediate_size"],
        "mistral3.attention.head_count": text["num_attention_heads"],
        "mistral3.attention.head_count_kv": text["num_key_value_heads"],
        "mistral3.attention.key_length": text["head_dim"],
        "mistral3.attention.value_length": text["head_dim"],
        "mistral3.attention.layer_norm_rms_epsilon": float(text["rms_norm_eps"]),
        "mistral3.rope.freq_base": float(rope),
        "mistral3.rope.dimension_count": text["head_dim"],
        "mistral3.vocab_size": text["vocab_size"],
        "tokenizer.ggml.pre": "tekken",
    }
    heads = {"q": text["num_attention_heads"], "k": text["num_key_value_heads"]}
    named = {n: w for n, w in weights.items() if n.startswith("language_model.")}
    return _write(path, "mistral3", pairs | metadata, named, heads, kind_of)


def write_mmproj(
    path: Path, config: Mapping[str, Any], weights: Weights, kind_of: KindOf, **metadata: Any
) -> Weights:
    """Write the tower and the projector of a model; else as `write_text_gguf`."""
    vision = config["vision_config"]
    pairs: dict[str, Any] = {
        "clip.has_vision_encoder": True,
        "clip.projector_type": "pixtral",
        "clip.use_silu": True,
        "clip.vision.projection_dim": config["text_config"]["hidden_size"],
        "clip.vision.image_size": vision["image_size"],
        "clip.vision.patch_size": vision["patch_size"],
        "clip.vision.embedding_length": vision["hidden_size"],
        "clip.vision.feed_forward_length": vision["intermediate_size"],
        "clip.vision.block_count": vision["num_hidden_layers"],
        "clip.vision.attention.head_count": vision["num_attention_heads"],
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.spatial_merge_size": config["spatial_merge_size"],
    }
    heads = dict.fromkeys("qk", vision["num_attention_heads"])
    named = {n: w for n, w in weights.items() if not n.startswith("language_model.")}
    return _write(path, "clip", pairs | metadata, named, heads, kind_of)


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of this canonical name."""
    if name in _OTHERS:
        return _OTHERS[name]
    layer = re.fullmatch(r"(.+)\.layers\.(\d+)\.(.+)\.weight", name)
    assert layer, name
    if layer[1].startswith("language_model"):
        return f"blk.{layer[2]}.{_TEXT[layer[3]]}.weight"
    return f"v.blk.{layer[2]}.{_TOWER[layer[3]]}.weight"


def everything(kind: str) -> KindOf:
    """Matrices of one type, norms and the convolution in float32, as the converter has them."""
    return lambda name: "F32" if "norm" in name or ".ln" in name or "_ln" in name else kind


@cache
def small_weights() -> Weights:
    """Name in the file -> the matrices of `small.F16.gguf` (see tests/data/gguf/README.md).

    Rows of the embedding that no golden answer uses are those of `small.Q4_K_M.gguf`.
    """
    near = {t.name: t for t in gguf.GGUFReader(GGUF / "small.Q4_K_M.gguf").tensors}
    weights = {}
    for name, (high, low) in np.load(GGUF / "small.differences.npz").items():
        zigzag = high.astype(np.int32) << 8 | low
        values = gguf.quants.dequantize(near[name].data, near[name].tensor_type)
        steps = _steps_from_zero(values) + (zigzag >> 1 ^ -(zigzag & 1))
        bits = np.where(steps < 0, 0x8000 - steps, steps).astype(np.uint32) << 16
        weights[name] = bits.view(np.float32)
    return weights


def write_small(path: Path, kind: str) -> dict[str, NDArray[Any]]:
    """Write `small.KIND.gguf` as llama.cpp does: up to 5 bits with the head in Q6_K.

    Returns the data of its matrices by name, as the file has them.
    """
    stored: dict[str, NDArray[Any]] = {}

    def quantized(name: str, data: NDArray[Any], was: Type) -> tuple[NDArray[Any], Type]:
        keeps_head = name == "output.weight" and kind[:2] in ("Q4", "Q5")
        if name not in small_weights() or keeps_head:
            return data, was
        stored[name] = gguf.quants.quantize(small_weights()[name], Type[kind])
        return stored[name], Type[kind]

    rewrite(GGUF / "small.Q4_K_M.gguf", path, quantized)
    return stored


def rewrite(source: Path, target: Path, change: Change) -> Path:
    """Write a decoder's file once more, without its vocabulary, each tensor as `change` has it."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "mistral3")
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")) and len(field.types) == 1:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        data, kind = change(tensor.name, np.array(tensor.data), tensor.tensor_type)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _steps_from_zero(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """How many values of bfloat16, cut off to it, lie between each value and zero; signed."""
    bits = (values.view(np.uint32) >> 16).astype(np.int32)
    return np.where(bits < 0x8000, bits, 0x8000 - bits)


def _write(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    weights: Weights,
    heads: Mapping[str, int],
    kind_of: KindOf,
) -> Weights:
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        _add(writer, key, value)
    stored: Weights = {}
    for n, (canonical, values) in enumerate(weights.items()):
        name = gguf_name(canonical)
        kind = kind_of(name)
        if values.ndim == 4 and kind in BLOCK_TYPES:
            kind = "F16"
        rotated = re.search(r"attn_([qk])\.", name)
        order = _interleaved(len(values), heads[rotated[1]]) if rotated else np.arange(len(values))
        data = _encode(kind, values[order], seed=n)
        writer.add_tensor(name, data, raw_dtype=Type[kind])
        stored[canonical] = np.empty_like(values)
        stored[canonical][order] = gguf.quants.dequantize(data, Type[kind]).reshape(values.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _encode(kind: str, values: NDArray[np.float32], seed: int) -> NDArray[Any]:
    """Values in a type; random blocks in place of them where `gguf` cannot quantize."""
    if kind in ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"):
        return random_blocks(kind, *values.shape, seed=seed)
    return gguf.quants.quantize(values, Type[kind])


def _interleaved(rows: int, heads: int) -> NDArray[np.int64]:
    """Where each row of the interleaved order comes from: 0, D/2, 1, D/2 + 1… of each head."""
    half = rows // heads // 2
    head = np.stack([np.arange(half), np.arange(half) + half], axis=1).reshape(-1)
    return (np.arange(heads)[:, None] * 2 * half + head).reshape(-1)
