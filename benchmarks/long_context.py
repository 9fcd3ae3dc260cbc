"""The full-size 4-bit model with a full cache: one prefill chunk and a few tokens, and their peak.

    python benchmarks/long_context.py --context 131072 --kv 4/4

The model is made of zeros (a sparse file that takes no disk) and its cache is filled with random
keys and values instead of a prompt that would take days here; neither changes what memory holds.
The predicted peak stands beside the measured one. Needs 22 GiB of memory for the whole context.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.sparse import write_sparse_4bit
from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.quantized import PARTS
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.config import TextConfig
from magistral_mlx.engine.generate import Prefilled, Request, generate
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.events import Prefill
from magistral_mlx.memory.here import describe, traits
from magistral_mlx.memory.peak import Shape, predict

DECODED = 3


def filled(scheme: KVScheme, text: TextConfig, tokens: int, dtype: mx.Dtype) -> dict[str, mx.array]:
    """What a cache of `tokens` tokens would save: random values of the right shapes."""

    def plain(count: int) -> mx.array:
        shape = (1, text.num_key_value_heads, count, text.head_dim)
        return mx.random.normal(shape).astype(dtype)

    if not scheme.quantized:
        return {"keys": plain(tokens), "values": plain(tokens)}
    packed = scheme.packed(tokens)
    saved = {}
    for kind, bits in (("keys", scheme.key_bits), ("values", scheme.value_bits)):
        saved[f"first_{kind}"] = plain(scheme.first)
        saved[f"window_{kind}"] = plain(tokens - scheme.first - packed)
        # One block, repeated: quantizing all of it at once would take more than the cache does.
        block = mx.quantize(plain(1024), group_size=scheme.group_size, bits=bits)
        repeats = -(-packed // 1024)
        for part, array in zip(PARTS, block, strict=True):
            saved[f"packed_{kind}_{part}"] = mx.tile(array, (1, 1, repeats, 1))[:, :, :packed]
    return saved


def fill(caches: list[KVCache], scheme: KVScheme, text: TextConfig, tokens: int, most: int) -> None:
    """Fill each layer's cache, one after the other."""
    for cache in caches:
        cache.reserve(most, most)
        cache.restore(filled(scheme, text, tokens, mx.float32), tokens)
        mx.eval(cache.state)


def measure(context: int, kv: str, chunk: int, layers: int) -> dict[str, Any]:
    """Load, fill, prefill a chunk, decode -> figures in bytes and seconds."""
    scheme = KVScheme.parse(kv)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.open(write_sparse_4bit(Path(folder), layers=layers))
        here = traits()
        known = describe(checkpoint, "full size", here.float_bytes)
        shape = Shape(prompt=context - DECODED, answer=DECODED, chunk=chunk)
        predicted = predict(known.config, known.weights, scheme, shape, here)
        mx.set_memory_limit(predicted.total)
        mx.set_cache_limit(0)
        start = time.perf_counter()
        model = load_model(checkpoint)
        loaded = time.perf_counter()
        caches = model.make_caches(scheme)
        held = context - DECODED - chunk
        fill(caches, scheme, checkpoint.config.text, held, context)
        mx.clear_cache()
        mx.reset_peak_memory()
        tokens = np.full(context - DECODED, 100, np.int32)
        request = Request(tokens, (), Sampling(temperature=0), DECODED, scheme=scheme, chunk=chunk)
        began = time.perf_counter()
        steps = generate(model, request, start=Prefilled(caches, held))
        next(step for step in steps if not isinstance(step, Prefill))
        first = time.perf_counter()
        for _ in steps:
            pass
        end = time.perf_counter()
    peak_resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "context": context,
        "kv": kv,
        "layers": layers,
        "chunk": chunk,
        "load_seconds": loaded - start,
        "prefill_chunk_seconds": first - began,
        "decode_seconds_a_token": (end - first) / (DECODED - 1),
        "mlx_peak": mx.get_peak_memory(),
        "predicted_peak": predicted.total,
        "predicted_weights": predicted.weights,
        "predicted_cache": predicted.cache,
        "resident_peak": peak_resident,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--context", type=int, default=131_072)
    parser.add_argument("--kv", default="4/4", help="full, 8/8, 8/4 or 4/4")
    parser.add_argument("--chunk", type=int, default=64, help="tokens of the prefill chunk")
    parser.add_argument("--layers", type=int, default=40, help="fewer make it quicker")
    options = parser.parse_args()
    report(options.context, options.kv, options.chunk, options.layers)


def report(context: int, kv: str, chunk: int, layers: int) -> None:
    """Measure, and print the figures for a person and as a line of JSON."""
    figures = measure(context, kv, chunk, layers)
    for name, value in figures.items():
        is_bytes = name.endswith("peak") or name.startswith("predicted")
        shown = f"{value / (1 << 30):.2f} GiB" if is_bytes else value
        print(f"{name:24} {shown}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
