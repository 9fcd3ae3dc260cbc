"""What it costs to append a token to a cache of 1,000 and of 100,000 tokens.

    python -m benchmarks.append [--full]

A cache that writes in place costs the same at any length and takes no memory beside itself; one
that copies costs more the longer it is. One layer of Magistral Small (8 heads of 128, bfloat16) in
ours and in mlx-lm's; the worst step is the one in which a buffer grows. The next step is dispatched
when the last one is done, as the engine does it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.common import COLOURS, Record, console, options, show
from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import make_cache
from magistral_mlx.cache.scheme import KVScheme

SHAPE = (1, 8, 1, 128)
DTYPE = mx.bfloat16


def ours(length: int, scheme: str) -> Callable[[], list[mx.array]]:
    """One append to a cache of `length` tokens -> its arrays, to be evaluated."""
    cache = make_cache(KVScheme.parse(scheme))
    cache.reserve(length + 1024)
    keys = mx.random.normal((1, 8, length, 128)).astype(DTYPE)
    cache.append(keys, keys)
    mx.eval(cache.state)

    def append() -> list[mx.array]:
        new = mx.ones(SHAPE, DTYPE)
        cache.append(new, new)
        return cache.state

    return append


def mlx_lm(length: int) -> Callable[[], list[mx.array]]:
    from mlx_lm.models.cache import KVCache

    cache = KVCache()
    keys = mx.random.normal((1, 8, length, 128)).astype(DTYPE)
    cache.update_and_fetch(keys, keys)
    mx.eval(cache.keys, cache.values)

    def append() -> list[mx.array]:
        new = mx.ones(SHAPE, DTYPE)
        cache.update_and_fetch(new, new)
        return [cache.keys, cache.values]

    return append


def measure(append: Callable[[], list[mx.array]], steps: int) -> dict[str, Any]:
    """Microseconds a token, and bytes above what was held at the worst moment."""
    mx.eval(append())
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds = []
    for _ in range(steps):
        begin = time.perf_counter()
        mx.eval(append())
        seconds.append(time.perf_counter() - begin)
    return {
        "median_us": statistics.median(seconds) * 1e6,
        "mean_us": statistics.fmean(seconds) * 1e6,
        "worst_us": max(seconds) * 1e6,
        "above_bytes": mx.get_peak_memory() - held,
    }


def cases(length: int) -> Iterator[tuple[str, Callable[[], list[mx.array]]]]:
    yield "magistral-mlx", ours(length, "full")
    yield "magistral-mlx 8/8", ours(length, "8/8")
    yield "magistral-mlx 4/4", ours(length, "4/4")
    yield "mlx-lm", mlx_lm(length)


def main() -> None:
    given = options(__doc__ or "")
    record = Record("append")
    lengths = [1_000, 10_000, 100_000] if given.full else [1_000, 100_000]
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for length in lengths:
        for name, append in cases(length):
            console.print(f"{name} at {length:,}", style="dim")
            results.setdefault(name, {})[length] = measure(append, 600)
    rows = [
        [
            name,
            f"{length:,}",
            *(f"{figures[key]:,.0f}" for key in ("median_us", "mean_us", "worst_us")),
            f"{figures['above_bytes'] / 1e6:.1f} MB",
            f"{figures['mean_us'] / by_length[lengths[0]]['mean_us']:.1f}",
        ]
        for name, by_length in results.items()
        for length, figures in by_length.items()
    ]
    header = ["cache", "tokens", "median µs", "mean µs", "worst µs", "above", "mean / shortest"]
    show("Appending a token to one layer, 600 times", header, rows)
    with record.plot(given.out, title="Appending a token to one layer's cache") as (ax,):
        for name, by_length in results.items():
            means = [by_length[length]["mean_us"] for length in lengths]
            style = {"color": COLOURS.get(name), "marker": "o", "label": name}
            ax.plot(lengths, means, **style)
        ax.set(xscale="log", yscale="log", xlabel="tokens held", ylabel="µs a token, mean")
        ax.legend(frameon=False, fontsize=8)
    record.save(given.out, results=results)


if __name__ == "__main__":
    main()
