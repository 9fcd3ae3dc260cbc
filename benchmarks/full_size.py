"""The full-size model from end to end: convert, load, prefill, decode, beside mlx-lm.

    python benchmarks/full_size.py
    python benchmarks/full_size.py --context 131072

Makes a bfloat16 checkpoint of Magistral Small's size (48 GB by its length; it is sparse, reads as
zeros and takes no disk), converts it to 4 bits, loads the result, prefills 4 tokens and decodes 4.
Each step runs in a process of its own, ours and mlx-lm's in turn. Needs 40 GB of disk for the two
results (20 GB with --ours-only), and about 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TOKENS = 4


def convert_ours(folder: Path) -> None:
    from magistral_convert import convert

    convert(str(folder / "source"), folder / "ours")


def convert_mlx_lm(folder: Path) -> None:
    from mlx_lm.convert import convert

    convert(str(folder / "source"), str(folder / "mlx-lm"), quantize=True)


def run_ours(folder: Path) -> None:
    import numpy as np

    from magistral_mlx.backend import mx
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.checkpoint.load import load_model
    from magistral_mlx.engine.generate import Request, generate
    from magistral_mlx.engine.sampling import Sampling
    from magistral_mlx.events import Prefill

    model = timed("load", lambda: load_model(Checkpoint.open(folder / "ours")))
    report("load", mlx_peak=mx.get_peak_memory())
    mx.reset_peak_memory()
    request = Request(np.arange(TOKENS, dtype=np.int32) + 100, (), Sampling(0), TOKENS)
    steps = generate(model, request)
    timed("prefill", lambda: next(step for step in steps if not isinstance(step, Prefill)))
    timed("decode", lambda: [next(steps) for _ in range(TOKENS - 1)])
    report("decode", mlx_peak=mx.get_peak_memory())


def run_mlx_lm(folder: Path) -> None:
    import mlx.core as mx  # noqa: TID251
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    def load() -> Any:
        # On the CPU bfloat16 is ten times slower: float32 is what a user there would choose.
        model, _ = load_model(folder / "mlx-lm", lazy=True)
        if mx.default_device() == mx.Device(mx.DeviceType.cpu):
            model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        return model

    model = timed("load", load)
    report("load", mlx_peak=mx.get_peak_memory())
    mx.reset_peak_memory()
    steps = generate_step(mx.arange(TOKENS) + 100, model, max_tokens=TOKENS)
    timed("prefill", lambda: next(steps))
    timed("decode", lambda: [next(steps) for _ in range(TOKENS - 1)])
    report("decode", mlx_peak=mx.get_peak_memory())


STEPS: dict[str, Callable[[Path], None]] = {
    "convert-ours": convert_ours,
    "convert-mlx-lm": convert_mlx_lm,
    "run-ours": run_ours,
    "run-mlx-lm": run_mlx_lm,
}


def timed(name: str, work: Callable[[], Any]) -> Any:
    """Run, and report the seconds it took."""
    start = time.perf_counter()
    result = work()
    report(name, seconds=time.perf_counter() - start)
    return result


def report(name: str, **figures: float) -> None:
    """Hand figures to the process that compares them: one JSON object a line on stdout."""
    print(json.dumps({"step": name, **figures}), flush=True)


def child(step: str, folder: Path) -> None:
    """One step, with its time and the largest resident size of this process."""
    start = time.perf_counter()
    STEPS[step](folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    report("whole", seconds=time.perf_counter() - start, resident_peak=peak)


def measure(step: str, folder: Path) -> dict[str, dict[str, float]]:
    """Run a step in a process of its own -> what it reported, by name."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{step} failed with status {done.returncode}")
    figures: dict[str, dict[str, float]] = {}
    for line in done.stdout.splitlines():
        if line.startswith('{"step"'):
            entry = json.loads(line)
            figures.setdefault(entry.pop("step"), {}).update(entry)
    return figures


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the table, ours beside mlx-lm's."""
    table = Table("step", "figure", "ours", "mlx-lm", "ours / mlx-lm")
    rows = [
        ("convert", "whole", "seconds"),
        ("convert", "whole", "resident_peak"),
        ("run", "load", "seconds"),
        ("run", "load", "mlx_peak"),
        ("run", "prefill", "seconds"),
        ("run", "decode", "seconds"),
        ("run", "decode", "mlx_peak"),
        ("run", "whole", "resident_peak"),
    ]
    for phase, step, figure in rows:
        ours, theirs = (
            results.get(f"{phase}-{who}", {}).get(step, {}).get(figure)
            for who in ("ours", "mlx-lm")
        )
        unit = (lambda x: f"{x:,.1f} s") if figure == "seconds" else (lambda x: f"{x / 1e9:.2f} GB")
        label = f"{phase}" if step == "whole" else f"{step} {TOKENS if step != 'load' else ''}"
        table.add_row(
            label.strip(),
            figure.replace("_", " "),
            unit(ours) if ours else "-",
            unit(theirs) if theirs else "-",
            f"{ours / theirs:.2f}" if ours and theirs else "-",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument(
        "--context",
        type=int,
        help="instead: a cache of so many tokens, a prefill chunk and three decode steps",
    )
    parser.add_argument("--ours-only", action="store_true", help="leave mlx-lm out")
    parser.add_argument("--json", type=Path, help="write the figures to this file as well")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        child(options.step, options.folder)
        return
    if options.context:
        from benchmarks.long_context import report as report_context

        report_context(options.context, kv="4/4", chunk=64, layers=40)
        return
    from benchmarks.sparse import write_sparse_checkpoint

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        write_sparse_checkpoint(folder / "source")
        who = ["ours"] if options.ours_only else ["ours", "mlx-lm"]
        steps = [f"{phase}-{w}" for phase in ("convert", "run") for w in who]
        results = {step: measure(step, folder) for step in steps}
    show(results)
    if options.json:
        versions = {p: importlib.metadata.version(p) for p in ("mlx", "mlx-lm", "magistral-mlx")}
        machine = {"platform": platform.platform(), "cores": os.cpu_count()}
        record = {"command": sys.argv, "machine": machine, "versions": versions, **results}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
