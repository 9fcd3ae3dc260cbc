"""Common parts of the benchmarks: options, runtimes, records, tables and plots."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from magistral_mlx.bench.conditions import read_conditions
from magistral_mlx.bench.process import Program, RuntimeProcess, ours, peer, version, with_library
from magistral_mlx.bench.record import describe_machine, versions
from magistral_mlx.bench.rounds import Figure, ratios, repeat
from magistral_mlx.memory.machine import this_machine

__all__ = [
    "Figure",
    "Program",
    "Record",
    "RuntimeProcess",
    "all_programs",
    "arguments",
    "console",
    "interleave",
    "openblas",
    "options",
    "peers",
    "ratio",
    "ratios",
    "runtimes",
    "show",
    "spread",
]

ROOT = Path(__file__).parent.parent
OUT = ROOT / "build/bench"
VLM_PYTHON = ROOT / ".venv-mlx-vlm/bin/python"
OURS_COLOUR = "#d9480f"
COLOURS = {
    "magistral-mlx": OURS_COLOUR,
    "mlx-lm": "#1c7ed6",
    "mlx-lm + OpenBLAS": "#74c0fc",
    "mlx-vlm": "#2f9e44",
    "mlx-vlm + OpenBLAS": "#8ce99a",
}
console = Console(width=None if sys.stdout.isatty() else 140)


def options(doc: str, *, quick: int = 3, **more: dict[str, Any]) -> argparse.Namespace:
    """Parse the options of a script that measures in rounds, and its own, as `arguments` does.

    quick: rounds without --full.
    """
    rounds = {"type": int, "help": f"rounds at most; default {quick}, 7 with --full"}
    given = arguments(doc, full=True, rounds=rounds, **more)
    given.rounds = given.rounds or (7 if given.full else quick)
    return given


def arguments(doc: str, *, full: bool = False, **more: dict[str, Any]) -> argparse.Namespace:
    """Parse --out, --full where it does something, and more: name -> keywords of add_argument."""
    first, _, rest = doc.partition("\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if full:
        parser.add_argument("--full", action="store_true", help="all of it, however long it takes")
    parser.add_argument(
        "--out", type=Path, default=OUT, help="folder for the JSON record and the plot"
    )
    for name, keywords in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)
    return parser.parse_args()


# Runtimes


def openblas() -> str | None:
    """The OpenBLAS that our backend found on Linux, None elsewhere."""
    import magistral_mlx.backend  # noqa: F401  it loads the library

    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    found = (line.split()[-1] for line in maps.read_text().splitlines() if "libopenblas" in line)
    return next(found, None)


def peers(*names: str, blas: bool = True) -> Iterator[Program]:
    """Return the named peers, by default mlx-lm and mlx-vlm if installed.

    blas: a second time with our OpenBLAS, where there is one.
    """
    library = openblas()
    for name in names or ("mlx-lm", "mlx-vlm"):
        elsewhere = name == "mlx-vlm" and VLM_PYTHON.exists()
        program = peer(f"{name}={VLM_PYTHON}" if elsewhere else name)
        if version(program) is None:
            console.print(f"{program.label} is not installed here: left out.")
            continue
        yield program
        if blas and library:
            yield with_library(program, library)


@contextmanager
def runtimes(
    programs: Sequence[Program], folder: Path, dtype: str | None
) -> Iterator[dict[str, RuntimeProcess]]:
    """Start all and load the checkpoint -> label -> worker."""
    workers: dict[str, RuntimeProcess] = {}
    try:
        for program in programs:
            workers[program.label] = worker = RuntimeProcess(program)
            worker.ask("load", folder=str(folder), dtype=dtype)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def all_programs() -> list[Program]:
    """Ours and the peers."""
    return [ours(), *peers()]


def interleave(measures: dict[str, Callable[[], float]], most: int) -> dict[str, Figure]:
    """Let all take turns until they are steady, or `most` times."""
    names = list(measures)
    least = min(3, most)
    rounds = repeat(lambda: [measures[name]() for name in names], least, most)
    columns = zip(*rounds, strict=True)
    return {name: Figure.of(values) for name, values in zip(names, columns, strict=True)}


# Records


class Record:
    """The record of a script: its measurements, the machine, the versions and the command.

    name: of the script. variant: what tells this record from others of the same script.
    """

    def __init__(self, name: str, programs: Sequence[Program] = (), *, variant: str = "") -> None:
        self._file = f"{name}_{variant}" if variant else name
        self._begin = time.time()
        self.facts: dict[str, Any] = {
            "benchmark": name,
            "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": describe_machine(this_machine()) | {"processor": _processor()},
            "versions": versions([ours(), *(p for p in programs if not p.preload)]),
            "disturbances_before": read_conditions().disturbances,
        }

    def save(self, out: Path, **figures: Any) -> None:
        """Write a JSON file to the folder `out`."""
        self.facts |= figures
        self.facts["load_average_after"] = os.getloadavg()
        self.facts["seconds"] = time.time() - self._begin
        path = self._path(out, "json")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.facts, indent=1, default=_plain) + "\n")
        partial.rename(path)
        for disturbance in self.facts["disturbances_before"]:
            console.print(f"[yellow]Disturbed before it began: {disturbance}.[/yellow]")
        console.print(f"{path} ({self.facts['seconds']:.0f} s in all)", highlight=False)

    @contextmanager
    def plot(self, out: Path, *, panels: int = 1, title: str = "") -> Iterator[list[Any]]:
        """Axes to draw on; a PNG file is written to the folder `out` afterwards."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(
            1, panels, figsize=(5.6 * panels, 4.2), layout="constrained", squeeze=False
        )
        for ax in axes[0]:
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="y", color="#e9ecef")
            ax.set_axisbelow(True)
        yield list(axes[0])
        machine = self.facts["machine"]
        figure.suptitle(title, fontsize=11, fontweight="bold")
        figure.supxlabel(
            f"{machine['processor']}, {machine['cores']} cores, {machine['system'].split('-')[0]}, "
            f"MLX {self.facts['versions']['mlx']}, {self.facts['date']}",
            fontsize=7,
            color="#868e96",
        )
        path = self._path(out, "png")
        figure.savefig(path, dpi=160)
        pyplot.close(figure)
        console.print(str(path), highlight=False)

    def _path(self, out: Path, kind: str) -> Path:
        out.mkdir(parents=True, exist_ok=True)
        return out / f"{self._file}.{kind}"


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table, the first column to the left and the others to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for n, name in enumerate(header):
        table.add_column(name, justify="right" if n else "left")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)
    console.print()


def spread(figure: Figure) -> str:
    """The spread of a figure for a table; a single round has none."""
    return f"{figure.spread:.0%}" if len(figure.values) > 1 else "-"


def ratio(mine: Figure, theirs: Figure) -> str:
    """Mine over theirs for a table, by round, with half of its spread where it has one."""
    figure = ratios(mine.values, theirs.values)
    half = f" ± {figure.spread / 2 * figure.median:.2f}" if len(figure.values) > 1 else ""
    return f"{figure.median:.2f}{half}"


def _plain(value: Any) -> Any:
    if isinstance(value, Figure):
        return {"median": value.median, "spread": value.spread, "values": value.values}
    return str(value)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return this_machine().name
