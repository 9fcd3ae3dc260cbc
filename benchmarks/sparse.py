"""A checkpoint of Magistral Small 1.2's full size that costs no disk: real headers, zero weights.

A safetensors file is a header and raw bytes. One that is truncated to its full length is sparse
and reads as zeros, so memory and time can be measured at full size without the weights.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors
from magistral_mlx.config_files import config_from_hf
from magistral_mlx.quantization import Quantization
from training.tekken import write_tekken

SHARD_BYTES = 5 * 10**9
RANKS = 130_072  # with 1,000 control tokens, the model's vocabulary

CONFIG: dict[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "torch_dtype": "bfloat16",
    "image_token_index": 10,
    "spatial_merge_size": 2,
    "multimodal_projector_bias": False,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e9,
        "vocab_size": 131072,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "head_dim": 64,
        "image_size": 1540,
        "patch_size": 14,
        "num_channels": 3,
        "rope_theta": 1e4,
        "hidden_act": "silu",
    },
}


def write_sparse_checkpoint(folder: Path, *, layers: int = 40) -> Path:
    """Write a bfloat16 checkpoint in Hugging Face's layout; 48 GB by its length, no disk taken.

    Args:
        layers: of the decoder; fewer make a smaller model of the same matrices.
    """
    config = json.loads(json.dumps(CONFIG))
    config["text_config"]["num_hidden_layers"] = layers
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(expected_tensors(config_from_hf(config)))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_sparse_safetensors(folder / name, {key: ("BF16", shape) for key, shape in shard})
        weight_map |= {key: name for key, _ in shard}
    total = sum(2 * math.prod(shape) for shard in shards for _, shape in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11})
    )
    (folder / "SYSTEM_PROMPT.txt").write_text("Think.[THINK]Your thoughts[/THINK]Then answer.")
    write_tekken(folder / "tekken.json", RANKS)
    return folder


def write_sparse_4bit(folder: Path, *, layers: int = 40) -> Path:
    """Write what converting the bfloat16 checkpoint gives, as zeros: 14 GB by its length."""
    config = json.loads(json.dumps(CONFIG))
    config["text_config"]["num_hidden_layers"] = layers
    config["quantization"] = {"group_size": 64, "bits": 4, "mode": "affine"}
    scheme = Quantization()
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in expected_tensors(config_from_hf(config)).items():
        if name.startswith(LANGUAGE) and len(shape) == 2:
            scales = scheme.scales_shape((shape[0], shape[1]))
            tensors[name] = ("U32", scheme.weight_shape((shape[0], shape[1])))
            tensors[name.replace(".weight", ".scales")] = ("BF16", scales)
            tensors[name.replace(".weight", ".biases")] = ("BF16", scales)
        else:
            tensors[name] = ("BF16", shape)
    folder.mkdir(parents=True, exist_ok=True)
    write_sparse_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def write_sparse_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Write a safetensors file of zeros: name -> dtype (BF16, U32 or U8) and shape."""
    size = {"BF16": 2, "U32": 4, "U8": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + size[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + end)


def _split(tensors: dict[str, tuple[int, ...]]) -> list[list[tuple[str, tuple[int, ...]]]]:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in tensors.items():
        nbytes = 2 * math.prod(shape)
        if size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += nbytes
    return shards
