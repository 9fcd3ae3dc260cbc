"""Time and memory of a GGUF file at full size: converted, and loaded as it is.

    python -m benchmarks.gguf [--layers N] [--folder DIR]

The file is a sparse Q4_K_M of Magistral Small 1.2 (14 GB by its length; it takes no disk): Q4_K,
and Q6_K where llama.cpp mixes it in. The conversion takes 16 GB of disk. Each runs in a process of
its own, beside one that imports the same and does nothing. A sparse file is read at the speed of
memory, so reading it twice is faster here than any disk would be.
"""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np

from benchmarks.common import Record, arguments, console, show
from benchmarks.convert import Measured, measure
from benchmarks.sparse import CONFIG, RANKS
from magistral_convert.recipe import is_sensitive_layer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.gguf.header import BLOCKS
from training.tekken import write_tekken

BUILD = Path(__file__).parent.parent / "build"
IDLE = "import magistral_convert.pipeline"
CONVERT = "import sys; from magistral_convert import convert; convert(sys.argv[1], sys.argv[2])"
LOAD = """
import sys
from pathlib import Path
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
load_model(Checkpoint.open(Path(sys.argv[1])))
"""


def write_sparse_gguf(path: Path, layers: int) -> Path:
    """Write the header of a Q4_K_M and leave its weights as holes, which read as zeros."""
    text = CONFIG["text_config"]
    dim, mlp, vocabulary = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    heads, kv, head = text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (vocabulary, dim)}
    for n in range(layers):
        shapes |= {
            f"blk.{n}.attn_norm": (dim,),
            f"blk.{n}.attn_q": (heads * head, dim),
            f"blk.{n}.attn_k": (kv * head, dim),
            f"blk.{n}.attn_v": (kv * head, dim),
            f"blk.{n}.attn_output": (dim, heads * head),
            f"blk.{n}.ffn_norm": (dim,),
            f"blk.{n}.ffn_gate": (mlp, dim),
            f"blk.{n}.ffn_up": (mlp, dim),
            f"blk.{n}.ffn_down": (dim, mlp),
        }
    shapes |= {"output_norm": (dim,), "output": (vocabulary, dim)}
    writer = gguf.GGUFWriter(path, "mistral3")
    writer.add_block_count(layers)
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(dim)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_theta"])
    size = 0
    for name, shape in shapes.items():
        kind = _kind(name, layers) if len(shape) == 2 else "F32"
        weights, nbytes = BLOCKS[kind]
        stored, dtype = list(shape), np.dtype(np.float32)
        if kind != "F32":
            stored, dtype = [shape[0], shape[1] // weights * nbytes], np.dtype(np.uint8)
        total = math.prod(shape) // weights * nbytes
        raw = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(f"{name}.weight", stored, dtype, total, raw)
        size += -(-total // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        start = -(-path.stat().st_size // 32) * 32
        file.truncate(start + size)
    return path


def _kind(name: str, layers: int) -> str:
    """As llama.cpp's Q4_K_M mixes them."""
    if name == "output":
        return "Q6_K"
    if not name.endswith(("attn_v", "ffn_down")):
        return "Q4_K"
    return "Q6_K" if is_sensitive_layer(int(name.split(".")[1]), layers) else "Q4_K"


def read_twice(path: Path) -> float:
    """Seconds."""
    started = time.perf_counter()
    for _ in range(2):
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(8 << 20)
            while file.readinto(buffer):
                pass
    return time.perf_counter() - started


def main() -> None:
    given = arguments(
        __doc__ or "",
        layers={"type": int, "default": 40, "help": "of the decoder; default 40"},
        folder={"type": Path, "default": BUILD, "help": "where to work; default build"},
    )
    record = Record("gguf", [])
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gguf-", dir=given.folder) as folder:
        path = write_sparse_gguf(Path(folder) / "Magistral-Q4_K_M.gguf", given.layers)
        write_tekken(Path(folder) / "tekken.json", RANKS)
        checkpoint = Checkpoint.open(path)
        largest = max(tensor.nbytes for tensor in checkpoint.tensors.values())
        runs = {"idle": _run(IDLE), "convert": _run(CONVERT, str(path), f"{folder}/out")}
        shutil.rmtree(Path(folder) / "out")
        runs["load"] = _run(LOAD, str(path))
        reading = read_twice(path)
        figures = {"file": path.stat().st_size, "output": checkpoint.nbytes, "largest": largest}
    rows = [
        [
            name,
            f"{run.seconds:.1f} s",
            f"{run.cpu_seconds:.1f} s",
            f"{run.peak_bytes / 1e9:.2f} GB",
            f"{(run.peak_bytes - runs['idle'].peak_bytes) / 1e9:.2f} GB",
        ]
        for name, run in runs.items()
    ]
    title = (
        f"A Q4_K_M of {figures['file'] / 1e9:.1f} GB, {figures['output'] / 1e9:.1f} GB laid out, "
        f"its largest tensor {largest / 1e9:.2f} GB; read twice in {reading:.1f} s"
    )
    show(title, ["what", "time", "CPU time", "peak resident", "above idle"], rows)
    record.save(
        given.out,
        layers=given.layers,
        reading_twice=reading,
        bytes=figures,
        runs={name: asdict(run) for name, run in runs.items()},
    )


def _run(code: str, *arguments: str) -> Measured:
    measured = measure([sys.executable, "-c", code, *arguments])
    console.print(f"{measured.seconds:.1f} s", style="dim")
    return measured


if __name__ == "__main__":
    main()
