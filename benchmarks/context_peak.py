"""Peak memory of the full-size model against context: ours with each cache, and mlx-lm's.

    python -m benchmarks.context_peak

Two of the 40 layers are run (the matrices, heads and vocabulary are those of the full size), with a
cache filled with random values, one prefill chunk of 16 tokens and three decode steps; the other 38
layers' weights and caches are added by arithmetic, as the work in passing is that of one layer at a
time. All computes in float32 here, so a full-precision cache is twice what it is on a Mac, and
mlx-lm's scales too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Record, arguments, console, peers, show

LAYERS, ALL, CHUNK, DECODED = 2, 40, 16, 3
CONTEXTS = (4_096, 16_384, 40_960, 131_072)
OURS = ("full", "8/8", "6/6", "6/4", "5/4", "4/4")
THEIRS = ("full", "8-bit")
SHADES = ("#7f1d1d", "#d9480f", "#fd7e14", "#ffc078", "#1864ab", "#4dabf7")
MAC = 64 / 3 * 2**30  # what Metal allows of 32 GB


def ours(context: int, kv: str) -> dict[str, float]:
    """MLX's peak with LAYERS layers, and the bytes of one layer's cache."""
    from benchmarks.long_context import measure
    from magistral_mlx.cache.scheme import KVScheme
    from magistral_mlx.memory.known import MAGISTRAL_SMALL
    from magistral_mlx.memory.peak import cache_bytes

    figures = measure(context, kv, CHUNK, LAYERS)
    cache = cache_bytes(MAGISTRAL_SMALL.text, KVScheme.parse(kv), context, 4) // ALL
    return {"peak": figures["mlx_peak"], "cache": cache}


def theirs(context: int, kv: str) -> dict[str, float]:
    """The same for mlx-lm's own model, cache and attention."""
    import mlx.core as mx  # noqa: TID251
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    from benchmarks.sparse import write_sparse_4bit

    with tempfile.TemporaryDirectory() as folder:
        model, _ = load_model(write_sparse_4bit(Path(folder), layers=LAYERS), lazy=True)
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        caches = make_prompt_cache(model)
        held = context - CHUNK - DECODED
        for n, cache in enumerate(caches):
            cache.update_and_fetch(*(mx.random.normal((1, 8, held, 128)) for _ in range(2)))
            if kv == "8-bit":
                caches[n] = cache.to_quantized(group_size=64, bits=8)
            mx.eval([caches[n].state])
        del cache
        layer = sum(c.nbytes for c in caches) / LAYERS
        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval(model(mx.full((1, CHUNK), 100, mx.int32), cache=caches)[:, -1])
        for _ in range(DECODED):
            mx.eval(model(mx.full((1, 1), 100, mx.int32), cache=caches))
        return {"peak": mx.get_peak_memory(), "cache": layer}


def layer_weights(who: str) -> float:
    """Bytes of the weights of one layer at 4 bits; mlx-lm's scales are in float32 here."""
    from magistral_mlx.memory.known import MAGISTRAL_SMALL, quantized_weights
    from magistral_mlx.quantization import Quantization

    quantized = quantized_weights(MAGISTRAL_SMALL, Quantization(), 2).decoder
    bits = 4.5 if who == "ours" else 5.0
    return (quantized / 4.5 * bits - 2 * 131072 * 5120 * bits / 8) / ALL


def run(who: str, context: int, kv: str) -> float | None:
    """Bytes at ALL layers; None where two layers of it do not even run here."""
    command = [sys.executable, "-m", "benchmarks.context_peak", "--one", who, str(context), kv]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return None
    figures = json.loads(done.stdout.splitlines()[-1])
    return figures["peak"] + (ALL - LAYERS) * (layer_weights(who) + figures["cache"])


def main() -> None:
    given = arguments(
        __doc__ or "",
        contexts={
            "type": int,
            "nargs": "+",
            "default": CONTEXTS,
            "help": "tokens; default 4096 16384 40960 131072",
        },
        one={"nargs": 3, "help": argparse.SUPPRESS},
    )
    if given.one:
        who, context, kv = given.one
        figures = {"ours": ours, "mlx-lm": theirs}[who](int(context), kv)
        print(json.dumps(figures))
        return
    programs = list(peers("mlx-lm", blas=False))
    record = Record("context_peak", programs)
    caches = [("ours", kv) for kv in OURS]
    caches += [(program.label, kv) for program in programs for kv in THEIRS]
    rows, results = [], {}
    for who, kv in caches:
        peaks = [run(who, context, kv) for context in given.contexts]
        results[f"{who}, {kv}"] = peaks
        rows.append([f"{who}, {kv}", *map(_shown, peaks)])
        console.print(", ".join(rows[-1]), style="dim")
    show("Peak of the full-size model", ["cache", *(f"{c:,}" for c in given.contexts)], rows)
    console.print("* does not fit: more than the 21.3 GiB that a 32 GB Mac gives to a model")
    _plot(record, given.out, given.contexts, results)
    record.save(given.out, contexts=given.contexts, peaks=results)


def _shown(peak: float | None) -> str:
    if peak is None:
        return "did not run"
    return f"{peak / 2**30:.1f} GiB" + (" *" if peak > MAC else "")


def _plot(
    record: Record, out: Path, contexts: list[int], results: dict[str, list[float | None]]
) -> None:
    title = "Peak memory of the full-size model, 4-bit weights"
    with record.plot(out, title=title) as (ax,):
        for (name, peaks), colour in zip(results.items(), SHADES, strict=False):
            known = [(c, p / 2**30) for c, p in zip(contexts, peaks, strict=True) if p]
            style = "--" if name.startswith("mlx-lm") else "-"
            if known:
                ax.plot(*zip(*known, strict=True), style, marker="o", label=name, color=colour)
        ax.axhline(MAC / 2**30, color="grey", linewidth=1)
        ax.annotate("what a 32 GB Mac gives", (contexts[0], MAC / 2**30 + 0.4), color="grey")
        ax.set(xscale="log", xlabel="tokens of context", ylabel="peak, GiB (computing in float32)")
        ax.minorticks_off()
        ax.set_xticks(contexts, [f"{c:,}" for c in contexts])
        ax.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
