"""Tokens per second against context: ours, mlx-lm and mlx-vlm on the same 4-bit weights.

    python -m benchmarks.tokens_per_second [--full] [--model midsize|demo|full-size|FOLDER]

Each runtime runs in a process of its own and they take turns; the peers run twice, as installed and
with the OpenBLAS that ours finds. Before anything is timed, every runtime has to give the greedy
tokens that ours gives. Beside each decode figure stands its physical limit: the bytes that a token
reads (weights and cache) over the bandwidth of memory measured in the same run.

Decoding starts from caches that are filled with random keys and values, the same in all runtimes: a
peer's prefill of 8,000 tokens would take half an hour on a CPU. Prefill runs on random tokens, from
nothing and as the last 32 tokens of a context; in the quick run of one context, and the peers get a
shorter prompt than ours. What a step costs the host is the time to build its graph, and the
operations in it, one for each that is one kernel on Metal.

`--model full-size` is for a GPU: 24 billion random parameters at 4 bits, 14 GB.
"""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    COLOURS,
    Figure,
    Record,
    RuntimeProcess,
    all_programs,
    console,
    interleave,
    options,
    ratio,
    runtimes,
    show,
    spread,
)
from benchmarks.midsize import FOLDER, full_size, midsize
from magistral_mlx.backend import DTYPES, backend
from magistral_mlx.bench.bandwidth import measure_bandwidth
from magistral_mlx.bench.compare import decode_rate, equal_start
from magistral_mlx.bench.process import OURS
from magistral_mlx.bench.record import bytes_per_token
from magistral_mlx.bench.worker import launches
from magistral_mlx.cache.scheme import FULL
from magistral_mlx.checkpoint.folder import Checkpoint

CHECKED = 8  # greedy tokens that have to be ours
TAIL = 32  # tokens that are prefilled at a context
Figures = dict[int, dict[str, Figure]]
Peaks = dict[int, dict[str, int]]


def checkpoint_of(model: str) -> Checkpoint:
    """The 4-bit checkpoint that a name stands for; made if need be."""
    if model == "midsize":
        return Checkpoint.open(midsize())
    if model == "full-size":
        return Checkpoint.open(full_size())
    if model != "demo":
        return Checkpoint.open(Path(model))
    folder = FOLDER / "demo-4bit"
    if not folder.exists():
        from magistral_convert import convert
        from magistral_mlx.library import locate

        convert(str(locate("demo")), folder)
    return Checkpoint.open(folder)


def same_tokens(workers: dict[str, RuntimeProcess], vocabulary: int, exact: bool) -> dict[str, int]:
    """Number of `CHECKED` greedy tokens equal to ours by label; runtimes that differ are left out.

    Once after a prompt, once after caches filled with random keys and values.
    """
    equal: dict[str, int] = {}
    for work in ({"prompt": 8}, {"prompt": 1, "filled": 300}):
        expected: list[int] = []
        for label, worker in list(workers.items()):
            ids = worker.ask("generate", count=CHECKED, vocabulary=vocabulary, **work)["ids"]
            expected = expected or ids
            equal[label] = min(equal.get(label, CHECKED), equal_start(expected, ids))
    for label, count in equal.items():
        if count < (CHECKED if exact else 4):
            console.print(f"{label} has different results (token {count}): left out.")
            workers.pop(label).close()
    return equal


def decode(
    workers: dict[str, RuntimeProcess], contexts: list[int], count: int, vocabulary: int, most: int
) -> tuple[Figures, Peaks]:
    """Context -> label -> decoded tokens per second, and MLX's peak."""
    peaks: Peaks = {}

    def once(label: str, context: int) -> float:
        answer = workers[label].ask(
            "generate", prompt=1, filled=context - 1, count=count, vocabulary=vocabulary
        )
        peaks.setdefault(context, {})[label] = answer["peak"]
        return decode_rate(answer)

    figures: Figures = {}
    for context in contexts:
        console.print(f"decode at {context:,}", style="dim")
        turns = {label: partial(once, label, context) for label in workers}
        figures[context] = interleave(turns, most)
    return figures, peaks


def prefill(
    workers: dict[str, RuntimeProcess], lengths: dict[str, list[int]], vocabulary: int, most: int
) -> Figures:
    """Length -> label -> prompt tokens per second. lengths: what each runtime is given."""

    def once(label: str, length: int) -> float:
        answer = workers[label].ask("generate", prompt=length, count=1, vocabulary=vocabulary)
        return length / answer["first"]

    figures: Figures = {}
    for length in sorted({length for some in lengths.values() for length in some}):
        console.print(f"prefill of {length:,}", style="dim")
        turns = {k: partial(once, k, length) for k in workers if length in lengths[k]}
        figures[length] = interleave(turns, most)
    return figures


def prefill_at(
    workers: dict[str, RuntimeProcess], contexts: list[int], vocabulary: int, most: int
) -> Figures:
    """Context -> label -> tokens per second of its last `TAIL` tokens."""

    def once(label: str, context: int) -> float:
        answer = workers[label].ask(
            "generate", prompt=TAIL, filled=context - TAIL, count=1, vocabulary=vocabulary
        )
        return TAIL / answer["first"]

    figures: Figures = {}
    for context in contexts:
        console.print(f"prefill of {TAIL} at {context:,}", style="dim")
        turns = {label: partial(once, label, context) for label in workers}
        figures[context] = interleave(turns, most)
    return figures


def show_decode(figures: Figures, limits: dict[int, float], peaks: Peaks) -> None:
    rows = []
    for context, by_label in figures.items():
        mine = by_label[OURS]
        for label, figure in by_label.items():
            times = "" if label == OURS else ratio(mine, figure)
            share = f"{figure.median / limits[context]:.1%}"
            limit = f"{limits[context]:.1f}"
            speed = f"{figure.median:.2f}"
            peak = f"{peaks[context][label] / 1e9:.2f} GB"
            rows.append([label, f"{context:,}", speed, spread(figure), times, limit, share, peak])
    header = ["runtime", "context", "tokens/s", "spread", "ours / theirs", "limit", "share", "peak"]
    show("Decode", header, rows)


def show_prefill(title: str, place: str, figures: Figures) -> None:
    """place: what the figures are by, the length of a prompt or a context."""
    rows = []
    for tokens, by_label in figures.items():
        for label, figure in by_label.items():
            times = "" if label == OURS else ratio(by_label[OURS], figure)
            speed = f"{figure.median:.1f}"
            rows.append([label, f"{tokens:,}", speed, spread(figure), times])
    show(title, ["runtime", place, "tokens/s", "spread", "ours / theirs"], rows)


def show_host(graphs: dict[str, dict[str, Any]]) -> None:
    rows = [
        [
            label,
            f"{statistics.median(graph['build']) * 1e3:.2f} ms",
            sum(graph["operations"].values()),
            launches(graph["operations"]),
        ]
        for label, graph in graphs.items()
    ]
    header = ["runtime", "building the graph", "operations", "of them no views"]
    show("What one decoded token costs the host", header, rows)


def draw(record: Record, out: Path, figures: Figures, fast: Figures) -> None:
    title = f"Tokens per second, {record.facts['model']}"
    with record.plot(out, panels=2, title=title) as (left, right):
        contexts = list(figures)
        for label in figures[contexts[0]]:
            speeds = [figures[context][label].median for context in contexts]
            dashed = "--" if "OpenBLAS" in label else "-"
            left.plot(contexts, speeds, dashed, marker="o", color=COLOURS.get(label), label=label)
        left.set(
            xscale="log", xlabel="tokens of context", ylabel="decoded tokens/s", ylim=(0, None)
        )
        left.set_xticks(contexts, [f"{context:,}" for context in contexts], fontsize=8)
        left.minorticks_off()
        left.legend(frameon=False, fontsize=8)
        most = max(map(len, fast.values()))
        length = max(length for length, by_label in fast.items() if len(by_label) == most)
        for place, (label, figure) in enumerate(fast[length].items()):
            right.bar(place, figure.median, color=COLOURS.get(label))
            text = f"{figure.median:,.1f}"
            right.annotate(text, (place, figure.median), ha="center", va="bottom", fontsize=8)
        right.set(ylabel=f"prompt tokens/s, {length} tokens", ylim=(0, None))
        labels = [label.replace(" + ", "\n+ ") for label in fast[length]]
        right.set_xticks(range(len(labels)), labels, fontsize=8)


def main() -> None:
    given = options(
        __doc__ or "", model={"default": "midsize", "help": "midsize, demo, full-size or a folder"}
    )
    model = Path(given.model).resolve().name  # of a folder, its last part
    checkpoint = checkpoint_of(given.model)
    text = checkpoint.config.text
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtype = backend().dtype
    longest = text.max_position_embeddings
    contexts = [128, 1024, 4096, 8192, 16384, 32768] if given.full else [128, 8192, 16384]
    contexts = [context for context in contexts if context + 64 <= longest]
    count = (32 if given.full else 6) if given.model == "midsize" else 64
    programs = all_programs()
    variant = "" if given.model == "midsize" else model
    record = Record("tokens_per_second", programs, variant=variant)
    bandwidth = measure_bandwidth()
    limits = {
        context: bandwidth / bytes_per_token(checkpoint, context + count // 2, FULL, dtype.size)
        for context in contexts
    }
    lengths = {OURS: [128, 512, 2048] if given.full else [32, 512]}
    with runtimes(programs, checkpoint.folder, names[dtype]) as workers:
        exact = backend().name == "cpu"
        equal = same_tokens(workers, text.vocab_size, exact)
        decoded, peaks = decode(workers, contexts, count, text.vocab_size, given.rounds)
        # Another BLAS changes no graph, and no product with packed weights.
        installed = {k: worker for k, worker in workers.items() if not worker.program.preload}
        most = given.rounds if given.full else 1
        readers = workers if given.full else installed
        for label in readers:
            lengths.setdefault(label, [128, 512] if given.full else [32])
        filled = prefill(readers, lengths, text.vocab_size, most)
        places = contexts[1:] if given.full else contexts[1:2]
        tails = prefill_at(installed, places, text.vocab_size, most)
        graphs = {
            k: worker.ask("graph", filled=127, rounds=20 if given.full else 5)
            for k, worker in installed.items()
        }
    record.facts["model"] = model
    show_decode(decoded, limits, peaks)
    show_prefill("Prefill", "prompt", filled)
    if tails:
        show_prefill(f"Prefill of the last {TAIL} tokens of a context", "context", tails)
    show_host(graphs)
    console.print(f"Memory read at {bandwidth / 1e9:.1f} GB/s; computed in {names[dtype]}.")
    draw(record, given.out, decoded, filled)
    record.save(
        given.out,
        dtype=names[dtype],
        bandwidth=bandwidth,
        equal_tokens=equal,
        limits=limits,
        decode=decoded,
        peaks=peaks,
        prefill=filled,
        prefill_at_context=tails,
        graph=graphs,
    )


if __name__ == "__main__":
    main()
