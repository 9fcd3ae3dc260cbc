"""Cost of appending a token to a cache of 1,000 and of 100,000 tokens.

    python -m benchmarks.append [--full]

A cache that writes in place costs the same at any length and takes no memory beside itself; one
that copies costs more the longer it is. One layer of Magistral Small (8 heads of 128, bfloat16) in
ours and in mlx-lm's, which take turns, each round with a new cache; the worst step is the one in
which a buffer grows. The next step is dispatched when the last one is done, as the engine does it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from benchmarks.common import (
    COLOURS,
    Figure,
    Record,
    console,
    interleave,
    options,
    peers,
    ratio,
    show,
    spread,
)
from magistral_mlx.backend import mx
from magistral_mlx.bench.process import OURS
from magistral_mlx.cache.kv import make_cache
from magistral_mlx.cache.scheme import KVScheme

SHAPE = (1, 8, 1, 128)
DTYPE = mx.bfloat16
STEPS = 600
Append = Callable[[], list[mx.array]]


def ours(scheme: str, keys: mx.array) -> Append:
    """One append to a cache that holds `keys`, (1, 8, L, 128) -> its arrays, to be evaluated."""
    cache = make_cache(KVScheme.parse(scheme))
    cache.reserve(keys.shape[2] + 1024)
    cache.append(keys, keys)
    mx.eval(cache.state)

    def append() -> list[mx.array]:
        new = mx.ones(SHAPE, DTYPE)
        cache.append(new, new)
        return cache.state

    return append


def mlx_lm(keys: mx.array) -> Append:
    from mlx_lm.models.cache import KVCache

    cache = KVCache()
    cache.update_and_fetch(keys, keys)
    mx.eval(cache.keys, cache.values)

    def append() -> list[mx.array]:
        new = mx.ones(SHAPE, DTYPE)
        cache.update_and_fetch(new, new)
        return [cache.keys, cache.values]

    return append


def steps(append: Append) -> dict[str, float]:
    """Microseconds a token, and bytes above what was held at the worst moment."""
    mx.eval(append())
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    seconds = []
    for _ in range(STEPS):
        begin = time.perf_counter()
        mx.eval(append())
        seconds.append(time.perf_counter() - begin)
    return {
        "median_us": statistics.median(seconds) * 1e6,
        "mean_us": statistics.fmean(seconds) * 1e6,
        "worst_us": max(seconds) * 1e6,
        "above_bytes": mx.get_peak_memory() - held,
    }


def caches(*, peer: bool) -> dict[str, Callable[[mx.array], Append]]:
    """Measurements by name; `peer`: mlx-lm is installed."""
    found: dict[str, Callable[[mx.array], Append]] = {
        OURS: partial(ours, "full"),
        f"{OURS} 8/8": partial(ours, "8/8"),
        f"{OURS} 4/4": partial(ours, "4/4"),
    }
    return found | ({"mlx-lm": mlx_lm} if peer else {})


def measure(
    makers: dict[str, Callable[[mx.array], Append]], length: int, most: int
) -> dict[str, dict[str, Figure]]:
    """Name -> what `steps` gives, of all rounds."""
    keys = mx.random.normal((1, 8, length, 128)).astype(DTYPE)
    mx.eval(keys)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in makers}

    def once(name: str) -> float:
        console.print(f"{name} at {length:,}", style="dim")
        seen[name].append(steps(makers[name](keys)))
        return seen[name][-1]["mean_us"]

    interleave({name: partial(once, name) for name in makers}, most)
    return {
        name: {key: Figure.of([each[key] for each in rounds]) for key in rounds[0]}
        for name, rounds in seen.items()
    }


def main() -> None:
    given = options(__doc__ or "")
    theirs = list(peers("mlx-lm", blas=False))
    makers = caches(peer=bool(theirs))
    record = Record("append", theirs)
    lengths = [1_000, 10_000, 100_000] if given.full else [1_000, 100_000]
    results = {length: measure(makers, length, given.rounds) for length in lengths}
    rows = []
    for name in makers:
        shortest = results[lengths[0]][name]["mean_us"]
        for length, by_name in results.items():
            figures, mean = by_name[name], by_name[name]["mean_us"]
            rows.append(
                [
                    name,
                    f"{length:,}",
                    *(f"{figures[key].median:,.0f}" for key in ("median_us", "mean_us")),
                    spread(mean),
                    ratio(by_name[OURS]["mean_us"], mean) if name == "mlx-lm" else "",
                    f"{figures['worst_us'].median:,.0f}",
                    f"{figures['above_bytes'].median / 1e6:.1f} MB",
                    f"{mean.median / shortest.median:.1f}",
                ]
            )
    header = ["cache", "tokens", "median µs", "mean µs", "spread", "ours / theirs"]
    header += ["worst µs", "above", "mean / shortest"]
    show(f"Appending a token to one layer, {STEPS} times", header, rows)
    with record.plot(given.out, title="Appending a token to one layer's cache") as (ax,):
        for name in makers:
            means = [results[length][name]["mean_us"].median for length in lengths]
            style = {"color": COLOURS.get(name), "marker": "o", "label": name}
            ax.plot(lengths, means, **style)
        ax.set(xscale="log", yscale="log", xlabel="tokens held", ylabel="µs a token, mean")
        ax.legend(frameon=False, fontsize=8)
    record.save(given.out, results=results)


if __name__ == "__main__":
    main()
