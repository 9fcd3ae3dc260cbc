"""Time and memory of a conversion: this project beside mlx-lm, on the same input.

    python -m benchmarks.convert [--full] [--layers N] [--folder DIR]

The input is a sparse bfloat16 checkpoint with the matrices of Magistral Small 1.2, vision tower
included; mlx-lm leaves the vision tower out. 2 layers of the decoder, or all 40 with --full (48 GB
by its length; it takes no disk). Each conversion runs in a process of its own, ours and mlx-lm's in
turns. A result is deleted before the next begins: 3 GB of disk, 14 GB with --full.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import (
    COLOURS,
    Figure,
    Record,
    console,
    interleave,
    options,
    peers,
    ratio,
    ratios,
    show,
    spread,
)
from benchmarks.sparse import write_sparse_checkpoint
from magistral_mlx.bench.process import OURS

BUILD = Path(__file__).parent.parent / "build"
LAYERS, ALL_LAYERS = 2, 40
CONVERTERS = {
    OURS: "import sys; from magistral_convert import convert; convert(sys.argv[1], sys.argv[2])",
    "mlx-lm": (
        "import sys; from mlx_lm import convert; convert(sys.argv[1], sys.argv[2], quantize=True)"
    ),
}


@dataclass(frozen=True)
class Measured:
    """Resources of a process: wall and CPU seconds, and its peak resident bytes."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(command: list[str]) -> Measured:
    """Run a command to its end. Raises `CalledProcessError` where it fails."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


class Conversions:
    """One checkpoint converted over and over, and what each time took."""

    def __init__(self, source: Path) -> None:
        self.measured: dict[str, list[Measured]] = {}
        self.output: dict[str, int] = {}  # bytes of the weights written
        self._source = source

    def seconds(self, name: str) -> float:
        """Convert once more -> seconds."""
        target = self._source.parent / name
        command = [sys.executable, "-c", CONVERTERS[name], str(self._source), str(target)]
        measured = measure(command)
        self.output[name] = sum(path.stat().st_size for path in target.glob("*.safetensors"))
        shutil.rmtree(target)
        self.measured.setdefault(name, []).append(measured)
        console.print(f"{name} {measured.seconds:.1f} s", style="dim")
        return measured.seconds


def main() -> None:
    given = options(
        __doc__ or "",
        layers={"type": int, "help": f"of the decoder; default {LAYERS}, {ALL_LAYERS} with --full"},
        folder={"type": Path, "default": BUILD, "help": "where to work; default build"},
    )
    layers = given.layers or (ALL_LAYERS if given.full else LAYERS)
    theirs = list(peers("mlx-lm", blas=False))
    record = Record("convert", theirs)
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="convert-", dir=given.folder) as folder:
        work = Conversions(write_sparse_checkpoint(Path(folder) / "source", layers=layers))
        names = [OURS, *(program.label for program in theirs)]
        seconds = interleave({name: partial(work.seconds, name) for name in names}, given.rounds)
    against = {name: ratios(seconds[OURS].values, seconds[name].values) for name in names[1:]}
    _show(layers, work, seconds)
    _plot(record, given.out, layers, work, seconds)
    record.save(
        given.out,
        layers=layers,
        seconds=seconds,
        ratios=against,
        output_bytes=work.output,
        runs={name: [asdict(one) for one in runs] for name, runs in work.measured.items()},
    )


def _peak(work: Conversions, name: str) -> int:
    return max(run.peak_bytes for run in work.measured[name])


def _show(layers: int, work: Conversions, seconds: dict[str, Figure]) -> None:
    rows: list[list[Any]] = []
    for name, figure in seconds.items():
        cpu = Figure.of([run.cpu_seconds for run in work.measured[name]])
        rows.append(
            [
                name,
                f"{figure.median:.1f} s",
                spread(figure),
                ratio(seconds[OURS], figure) if name != OURS else "",
                f"{cpu.median:.1f} s",
                f"{_peak(work, name) / 1e9:.2f} GB",
                f"{_peak(work, OURS) / _peak(work, name):.2f}" if name != OURS else "",
                f"{work.output[name] / 1e9:.2f} GB",
            ]
        )
    header = ["converter", "time", "spread", "ours / theirs", "CPU time"]
    header += ["peak resident", "ours / theirs", "written"]
    show(f"Converting {layers} layers of the full size to 4 bits", header, rows)


def _plot(
    record: Record, out: Path, layers: int, work: Conversions, seconds: dict[str, Figure]
) -> None:
    title = f"Converting {layers} layers of the full size to 4 bits"
    with record.plot(out, panels=2, title=title) as (left, right):
        names = list(seconds)
        colours = [COLOURS[name] for name in names]
        for ax, values, text in (
            (left, [seconds[name].median for name in names], "{:.1f} s"),
            (right, [_peak(work, name) / 1e9 for name in names], "{:.2f} GB"),
        ):
            bars = ax.bar(names, values, 0.5, color=colours)
            ax.bar_label(bars, [text.format(value) for value in values], fontsize=8)
        left.set(ylabel="seconds")
        right.set(ylabel="peak resident memory in GB")


if __name__ == "__main__":
    main()
