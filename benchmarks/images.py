"""Time and memory against number and size of images: ours and mlx-vlm, tower and projector.

    python -m benchmarks.images [--full]

The mid-size tower (512 wide, 6 layers), in float32 on the CPU. Where their number grows, images
are of 392 x 392 random pixels, with --full of 784 x 784. Memory is MLX's peak above the weights.
Before anything is timed, every runtime has to give the features that ours gives. mlx-vlm attends
over all patches at once, so its memory grows with the square of their number: it gets four of the
larger images at most (6 GB), and fewer without a fast BLAS, where one takes half a minute.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import (
    COLOURS,
    Figure,
    Record,
    RuntimeProcess,
    console,
    interleave,
    options,
    peers,
    ratio,
    runtimes,
    show,
    spread,
)
from benchmarks.midsize import midsize
from magistral_mlx.backend import DTYPES, backend, mx
from magistral_mlx.bench.process import OURS, ours

SIDE, SMALL_SIDE = 784, 392  # an image of 770 pixels is resized to 784, a multiple of 28
TOLERANCE, COARSE = 1e-3, 0.1  # of the largest feature; in 16 bits


def same_features(workers: dict[str, RuntimeProcess], tolerance: float) -> dict[str, float]:
    """Largest difference of two small images' features from ours, relative, by label.

    Runtimes with different results are ended and left out.
    """
    apart: dict[str, float] = {}
    mine: list[float] = []
    for label, worker in list(workers.items()):
        features = worker.ask("images", count=2, side=196)["features"]
        mine = mine or features
        differences = [abs(a - b) for a, b in zip(mine, features, strict=True)]
        apart[label] = max(differences) / max(map(abs, mine))
        if not apart[label] <= tolerance:  # nor is NaN
            console.print(f"{label} has different results ({apart[label]:.1%}): left out.")
            workers.pop(label).close()
    return apart


def measure(
    workers: dict[str, RuntimeProcess],
    works: list[tuple[int, int]],
    most: dict[str, float],
    rounds: int,
) -> dict[str, dict[str, dict[str, Any]]]:
    """'count x side' -> label -> seconds and bytes above the weights.

    most: images at once that a runtime is given.
    """
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for count, side in works:
        above: dict[str, int] = {}

        def once(label: str, count: int = count, side: int = side) -> float:
            answer = workers[label].ask("images", count=count, side=side)
            above[label] = answer["above"]  # noqa: B023
            return answer["seconds"]

        console.print(f"{count} of {side} x {side}", style="dim")
        turns = {
            label: lambda label=label: once(label)
            for label in workers
            if count * (side / SIDE) ** 2 <= most[label]
        }
        seconds = interleave(turns, rounds)
        results[f"{count} x {side}"] = {
            label: {"seconds": figure, "above": above[label]} for label, figure in seconds.items()
        }
    return results


def main() -> None:
    given = options(__doc__ or "", quick=1)
    programs = [ours(), *peers("mlx-vlm")]
    record = Record("images", programs)
    numbers = [1, 2, 4, 8]
    side = SIDE if given.full else SMALL_SIDE
    works = [(count, side) for count in numbers]
    works += [(1, other) for other in ((196, 392, 1540) if given.full else (196,))]
    names = {dtype: name for name, dtype in DTYPES.items()}
    most = {program.label: 4.0 for program in programs} | {OURS: 1e9}  # of the larger ones
    if backend().name == "cpu":
        most["mlx-vlm"] = 2 if given.full else 0.25
    with runtimes(programs, midsize(), names[backend().dtype]) as workers:
        tolerance = TOLERANCE if backend().dtype == mx.float32 else COARSE
        apart = same_features(workers, tolerance)
        results = measure(workers, works, most, given.rounds)
    base = results[f"1 x {side}"]
    rows = [
        [
            label,
            work,
            f"{figures['seconds'].median:.2f} s",
            spread(figures["seconds"]),
            "" if label == OURS else ratio(by_label[OURS]["seconds"], figures["seconds"]),
            f"{figures['above'] / 1e9:.2f} GB",
            f"{figures['seconds'].median / base[label]['seconds'].median:.2f}",
            f"{figures['above'] / base[label]['above']:.2f}",
        ]
        for work, by_label in results.items()
        for label, figures in by_label.items()
    ]
    header = ["runtime", "images", "time", "spread", "ours / theirs", "above"]
    header += ["time / one", "memory / one"]
    show("Images through tower and projector", header, rows)
    draw(record, given.out, results, numbers, side)
    record.save(given.out, features_apart=apart, results=results)


def draw(record: Record, out: Path, results: Any, numbers: list[int], side: int) -> None:
    title = f"Images of {side} x {side} through a mid-size tower"
    with record.plot(out, panels=2, title=title) as axes:
        for ax, key, unit, name in (
            (axes[0], "seconds", 1, "seconds"),
            (axes[1], "above", 1e9, "GB above the weights"),
        ):
            for label in results[f"1 x {side}"]:
                points = [
                    (count, results[f"{count} x {side}"][label][key])
                    for count in numbers
                    if label in results[f"{count} x {side}"]
                ]
                values = [(y.median if isinstance(y, Figure) else y) / unit for _, y in points]
                xs = [x for x, _ in points]
                ax.plot(xs, values, marker="o", color=COLOURS[label], label=label)
            ax.set(xlabel="images", ylabel=name, ylim=(0, None))
            ax.set_xticks(numbers)
            ax.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
