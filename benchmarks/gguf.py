"""Time and memory of a GGUF file at full size: converted, and loaded as it is.

    python -m benchmarks.gguf [--layers N] [--filled] [--folder DIR]

The file is a sparse Q4_K_M of Magistral Small 1.2 (14 GB by its length; it takes no disk): Q4_K,
and Q6_K where llama.cpp mixes it in. The conversion takes 16 GB of disk. Each runs in a process of
its own, beside one that imports the same and does nothing. A sparse file is read at the speed of
memory, so reading it twice is faster here than any disk would be.

With --filled the weights are on the disk (14 GB more) and nothing of them in the page cache as each
step begins; writing as many bytes as the conversion does, and flushing them, is measured as well.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Record, arguments, console, show
from benchmarks.convert import Measured, measure
from benchmarks.sparse import CONFIG, RANKS
from magistral_convert.recipe import is_sensitive_layer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.gguf.header import BLOCKS, read_gguf
from training.tekken import write_tekken

CHUNK = 8 << 20
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


def fill(path: Path) -> None:
    """Write random weights into the holes: the same blocks again and again, all finite."""
    rng = np.random.default_rng(0)
    blocks = {"F32": np.ones(1 << 16, "<f4").tobytes()}
    for kind, scales in {"Q4_K": [0, 2], "Q6_K": [208]}.items():
        some = rng.integers(0, 256, (1 << 16, BLOCKS[kind][1]), dtype=np.uint8)
        for start in scales:
            some[:, start : start + 2] = _small_halfs(rng, len(some))
        blocks[kind] = some.tobytes()
    with path.open("r+b") as file:
        for tensor in read_gguf(path).tensors.values():
            file.seek(tensor.offset)
            whole, rest = divmod(tensor.nbytes, len(blocks[tensor.dtype]))
            for _ in range(whole):
                file.write(blocks[tensor.dtype])
            file.write(blocks[tensor.dtype][:rest])
        file.flush()
        os.fsync(file.fileno())


def _small_halfs(rng: np.random.Generator, count: int) -> NDArray[np.uint8]:
    """(count, 2) bytes of float16 of the size of a model's scales."""
    return (1e-3 * rng.random(count)).astype("<f2").view(np.uint8).reshape(-1, 2)


def forget(path: Path) -> None:
    """Drop a file from the page cache, where the system can (Linux)."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_twice(path: Path) -> float:
    """Seconds."""
    seconds = 0.0
    for _ in range(2):
        forget(path)
        started = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            buffer = bytearray(CHUNK)
            while file.readinto(buffer):
                pass
        seconds += time.perf_counter() - started
    return seconds


def write_once(path: Path, nbytes: int) -> float:
    """Seconds to write so many bytes and flush them to the disk."""
    buffer = np.random.default_rng(1).bytes(CHUNK)
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(nbytes // CHUNK):
            file.write(buffer)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def main() -> None:
    given = arguments(
        __doc__ or "",
        layers={"type": int, "default": 40, "help": "of the decoder; default 40"},
        filled={"action": "store_true", "help": "weights on the disk, not holes"},
        folder={"type": Path, "default": BUILD, "help": "where to work; default build"},
    )
    record = Record("gguf", [])
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gguf-", dir=given.folder) as folder:
        path = write_sparse_gguf(Path(folder) / "Magistral-Q4_K_M.gguf", given.layers)
        write_tekken(Path(folder) / "tekken.json", RANKS)
        if given.filled:
            fill(path)
        runs = {"idle": _run(IDLE)}
        reading = read_twice(path)
        forget(path)
        runs["convert"] = _run(CONVERT, str(path), f"{folder}/out")
        written = Checkpoint.open(Path(folder) / "out")
        nbytes = sum(file.stat().st_size for file in written.files)
        largest = max(tensor.nbytes for tensor in written.tensors.values())
        shutil.rmtree(Path(folder) / "out")
        forget(path)
        runs["load"] = _run(LOAD, str(path))
        writing = write_once(Path(folder) / "written", nbytes) if given.filled else None
        figures = {"file": path.stat().st_size, "output": nbytes, "largest": largest}
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
        f"A Q4_K_M of {figures['file'] / 1e9:.1f} GB, {figures['output'] / 1e9:.1f} GB converted, "
        f"its largest tensor {largest / 1e9:.2f} GB; read twice in {reading:.1f} s"
    )
    if writing is not None:
        title += f", as much as the output written in {writing:.1f} s"
    show(title, ["what", "time", "CPU time", "peak resident", "above idle"], rows)
    record.save(
        given.out,
        layers=given.layers,
        filled=given.filled,
        reading_twice=reading,
        writing_once=writing,
        bytes=figures,
        runs={name: asdict(run) for name, run in runs.items()},
    )


def _run(code: str, *arguments: str) -> Measured:
    measured = measure([sys.executable, "-c", code, *arguments])
    console.print(f"{measured.seconds:.1f} s", style="dim")
    return measured


if __name__ == "__main__":
    main()
