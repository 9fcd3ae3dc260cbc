"""The full-size 4-bit model with a full cache: one prefill chunk and a few tokens, and their peak.

    python -m benchmarks.long_context [--context 131072] [--kv 4/4] [--chunk 64] [--layers 40]

The model is made of zeros (a sparse file that takes no disk) and its cache is filled with random
keys and values instead of a prompt that would take days here; neither changes what memory holds.
The predicted peak stands beside the measured one, and beside decoding its physical limit: the bytes
that a token reads over the bandwidth of memory measured in the same run. Needs 22 GiB of memory for
the whole context.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.common import Record, arguments, show
from benchmarks.sparse import write_sparse_4bit
from magistral_mlx.backend import backend, mx
from magistral_mlx.bench.bandwidth import measure_bandwidth
from magistral_mlx.bench.record import bytes_per_token
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.quantized import PARTS
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.config import TextConfig
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.events import Prefill
from magistral_mlx.memory.here import describe, profile
from magistral_mlx.memory.peak import Shape, predict

DECODED = 3


def filled(scheme: KVScheme, text: TextConfig, tokens: int, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Random saved state of a cache of `tokens` tokens, of the right shapes."""

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
    if packed and scheme.center:
        saved["center"] = plain(1)
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
        here = profile()
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
        request = SequenceInputs(
            tokens, (), Sampling(temperature=0), DECODED, scheme=scheme, chunk=chunk
        )
        began = time.perf_counter()
        steps = Generation(model, request, prefix=ComputedPrefix(caches, held))
        next(step for step in steps if not isinstance(step, Prefill))
        first = time.perf_counter()
        for _ in steps:
            pass
        end = time.perf_counter()
        read = bytes_per_token(checkpoint, context, scheme, backend().dtype.size)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peak_resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {
        "context": context,
        "kv": kv,
        "layers": layers,
        "chunk": chunk,
        "load_seconds": loaded - start,
        "prefill_chunk_seconds": first - began,
        "decode_seconds_a_token": (end - first) / (DECODED - 1),
        "bytes_read_a_token": read,
        "mlx_peak": mx.get_peak_memory(),
        "predicted_peak": predicted.total,
        "predicted_weights": predicted.weights,
        "predicted_cache": predicted.cache,
        "resident_peak": peak_resident,
    }


def main() -> None:
    given = arguments(
        __doc__ or "",
        context={"type": int, "default": 131_072, "help": "tokens; default 131072"},
        kv={"default": "4/4", "help": "full, or bits of keys and values, as in 6/4; default 4/4"},
        chunk={"type": int, "default": 64, "help": "tokens of the prefill chunk; default 64"},
        layers={"type": int, "default": 40, "help": "fewer than 40 make it quicker"},
    )
    report(given.context, given.kv, given.chunk, given.layers, given.out)


def report(context: int, kv: str, chunk: int, layers: int, out: Path) -> None:
    """Measure, print the figures, and write them to long_context.json in the folder `out`."""
    record = Record("long_context")
    figures = measure(context, kv, chunk, layers)
    bandwidth = measure_bandwidth()
    limit = figures["bytes_read_a_token"] / bandwidth
    figures |= {"bandwidth": bandwidth, "limit_seconds_a_token": limit}
    taken = figures["decode_seconds_a_token"]
    show(
        f"{layers} layers of the full-size model, a {kv} cache of {context:,} tokens",
        ["", "predicted", "measured"],
        [
            ["load", "", f"{figures['load_seconds']:.1f} s"],
            [f"prefill of {chunk} tokens", "", f"{figures['prefill_chunk_seconds']:.1f} s"],
            ["decode, a token", "", f"{taken:.2f} s"],
            ["  its limit, by memory", "", f"{limit:.2f} s, {limit / taken:.1%} of it reached"],
            ["weights", _gib(figures["predicted_weights"]), ""],
            ["cache", _gib(figures["predicted_cache"]), ""],
            ["MLX peak", _gib(figures["predicted_peak"]), _gib(figures["mlx_peak"])],
            ["peak resident", "", _gib(figures["resident_peak"])],
        ],
    )
    record.save(out, **figures)


def _gib(size: float) -> str:
    return f"{size / (1 << 30):.2f} GiB"


if __name__ == "__main__":
    main()
