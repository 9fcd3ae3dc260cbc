"""Random models of this architecture, large enough that weights and not Python take the time.

    python -m benchmarks.midsize FOLDER [--layers 12] [--full-size]

0.36 billion parameters with 12 layers, 4 bits in groups of 64, the decoder 1280 wide; a tower of
512 wide and 6 layers in bfloat16. Or all 24 billion, for a GPU: 14 GB in memory and on disk.
Weights are random, so that what runtimes answer tells whether they compute the same; written as our
converter writes them, so that mlx-lm and mlx-vlm read them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sparse import CONFIG
from benchmarks.sparse import RANKS as ALL_RANKS
from magistral_convert.output_format import output_name
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors
from magistral_mlx.config_files import config_from_hf
from magistral_mlx.quantization import Quantization
from training.tekken import write_tekken

SCHEME = Quantization()
RANKS = 31_768  # with 1,000 control tokens, 32,768 ids
FOLDER = Path(__file__).parent.parent / "build/bench"


def config(layers: int = 12) -> dict[str, Any]:
    """config.json of the model."""
    values = json.loads(json.dumps(CONFIG))
    values["text_config"] |= {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,  # 8 x 128 is not hidden_size
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 1000 + RANKS,
        "rope_theta": 1e6,
    }
    values["vision_config"] |= {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "head_dim": 64,
    }
    return values


def full_config(layers: int) -> dict[str, Any]:
    """config.json of Magistral Small 1.2, with so many layers."""
    values = json.loads(json.dumps(CONFIG))
    values["text_config"]["num_hidden_layers"] = layers
    return values


def midsize(layers: int = 12) -> Path:
    """The folder of the model, written the first time."""
    folder = FOLDER / f"midsize-{layers}"
    if not (folder / "config.json").exists():
        write_random(folder, config(layers), RANKS)
    return folder


def full_size(layers: int = 40) -> Path:
    """The folder of a model of Magistral Small's size, written the first time."""
    folder = FOLDER / f"full-size-{layers}"
    if not (folder / "config.json").exists():
        write_random(folder, full_config(layers), ALL_RANKS)
    return folder


def write_random(folder: Path, values: dict[str, Any], ranks: int, seed: int = 0) -> None:
    """Write the model of a config.json; the folder takes its name when it is complete."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    partial.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, mx.array] = {}
    for name, shape in expected_tensors(config_from_hf(values)).items():
        tensors |= _tensor(name, shape, rng)
    mx.save_safetensors(str(partial / "model.safetensors"), tensors, {"format": "mlx"})
    quantization = {"group_size": SCHEME.group_size, "bits": SCHEME.bits, "mode": SCHEME.mode}
    values |= {"quantization": quantization}
    (partial / "config.json").write_text(json.dumps(values, indent=2))
    write_tekken(partial / "tekken.json", ranks)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, mx.array]:
    """The parts of one tensor, by the name in the file."""
    spelled = output_name(name, flat=False)
    if len(shape) == 1:
        norm = 1 + 0.1 * rng.standard_normal(shape, dtype=np.float32)
        return {spelled: mx.array(norm).astype(mx.bfloat16)}
    deviation = math.prod(shape[1:]) ** -0.5
    if not name.startswith(LANGUAGE) or len(shape) != 2:
        plain = mx.array(deviation * rng.standard_normal(shape, dtype=np.float32))
        if name.endswith("patch_conv.weight"):
            plain = plain.transpose(0, 2, 3, 1)  # channels last, as our converter has it
        return {spelled: plain.astype(mx.bfloat16)}
    matrix = (shape[0], shape[1])
    packed = rng.integers(0, 1 << 32, SCHEME.weight_shape(matrix), dtype=np.uint32)
    # 16 evenly drawn levels deviate by 4.6 steps around their middle, 7.5.
    spread = rng.uniform(0.5, 1.5, SCHEME.scales_shape(matrix)).astype(np.float32)
    scales = mx.array(deviation / 4.6 * spread)
    stem = spelled.removesuffix("weight")
    return {
        spelled: mx.array(packed),
        stem + "scales": scales.astype(mx.bfloat16),
        stem + "biases": (-7.5 * scales).astype(mx.bfloat16),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--full-size", action="store_true", help="as wide as Magistral Small")
    options = parser.parse_args()
    if options.full_size:
        write_random(options.folder, full_config(options.layers), ALL_RANKS)
    else:
        write_random(options.folder, config(options.layers), RANKS)


if __name__ == "__main__":
    main()
