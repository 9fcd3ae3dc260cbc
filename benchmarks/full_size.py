"""The full-size model from end to end: convert, load, prefill, decode, beside mlx-lm.

    python -m benchmarks.full_size [--ours-only] [--folder DIR]
    python -m benchmarks.full_size --context 131072

Makes a bfloat16 checkpoint of Magistral Small's size (48 GB by its length; it is sparse, reads as
zeros and takes no disk), converts it to 4 bits, loads the result, prefills 4 tokens and decodes 4.
Each step runs in a process of its own, ours and mlx-lm's in turn. Beside decoding stands its
physical limit: the bytes that a token reads over the bandwidth measured in the same run. Needs
40 GB of disk for the two results (20 GB with --ours-only), and about 10 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

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
    from magistral_mlx.engine.generate import Generation
    from magistral_mlx.engine.inputs import SequenceInputs
    from magistral_mlx.engine.sampling import Sampling
    from magistral_mlx.events import Prefill

    model = timed("load", lambda: load_model(Checkpoint.open(folder / "ours")))
    report("load", mlx_peak=mx.get_peak_memory())
    mx.reset_peak_memory()
    request = SequenceInputs(np.arange(TOKENS, dtype=np.int32) + 100, (), Sampling(0), TOKENS)
    steps = Generation(model, request)
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


def decode_limit(folder: Path) -> dict[str, float]:
    """Tokens a second that memory allows, by the bandwidth measured now."""
    from magistral_mlx.backend import backend
    from magistral_mlx.bench.bandwidth import measure_bandwidth
    from magistral_mlx.bench.record import bytes_per_token
    from magistral_mlx.cache.scheme import FULL
    from magistral_mlx.checkpoint.folder import Checkpoint

    checkpoint = Checkpoint.open(folder / "ours")
    read = bytes_per_token(checkpoint, 2 * TOKENS, FULL, backend().dtype.size)
    bandwidth = measure_bandwidth()
    return {"bandwidth": bandwidth, "bytes": read, "tokens_per_second": bandwidth / read}


def show_results(results: dict[str, dict[str, dict[str, float]]], limit: float) -> None:
    """Print the table, ours beside mlx-lm's. limit: decoded tokens a second."""
    from benchmarks.common import show

    rows = []
    for phase, step, figure in (
        ("convert", "whole", "seconds"),
        ("convert", "whole", "resident_peak"),
        ("run", "load", "seconds"),
        ("run", "load", "mlx_peak"),
        ("run", "prefill", "seconds"),
        ("run", "decode", "seconds"),
        ("run", "decode", "mlx_peak"),
        ("run", "whole", "resident_peak"),
    ):
        ours, theirs = (
            results.get(f"{phase}-{who}", {}).get(step, {}).get(figure)
            for who in ("ours", "mlx-lm")
        )
        unit = (lambda x: f"{x:,.1f} s") if figure == "seconds" else (lambda x: f"{x / 1e9:.2f} GB")
        label = f"{phase}" if step == "whole" else f"{step} {TOKENS if step != 'load' else ''}"
        rows.append([label.strip(), figure.replace("_", " "), *_sides(ours, theirs, unit)])
    ours, theirs = (
        (TOKENS - 1) / results[run]["decode"]["seconds"] if run in results else None
        for run in ("run-ours", "run-mlx-lm")
    )
    rows.append(["decode", "tokens/s", *_sides(ours, theirs, "{:.3f}".format)])
    shares = _sides(ours and ours / limit, theirs and theirs / limit, "{:.1%}".format)
    rows.append(["", f"share of {limit:.3f}, the limit", *shares[:2], ""])
    show("The full-size model", ["step", "figure", "ours", "mlx-lm", "ours / mlx-lm"], rows)


def _sides(
    ours: float | None, theirs: float | None, shown: Callable[[float], str]
) -> tuple[str, str, str]:
    """Ours, theirs and the ratio, for a table."""
    return (
        shown(ours) if ours else "-",
        shown(theirs) if theirs else "-",
        f"{ours / theirs:.2f}" if ours and theirs else "-",
    )


def compare(beside: bool, parent: Path | None, out: Path) -> None:
    """Convert and run, beside mlx-lm if wanted; print the table and write the record."""
    from benchmarks.common import Record, peers
    from benchmarks.sparse import write_sparse_checkpoint

    theirs = list(peers("mlx-lm", blas=False)) if beside else []
    who = ["ours", *(program.label for program in theirs)]
    record = Record("full_size", theirs)
    with tempfile.TemporaryDirectory(dir=parent) as name:
        folder = Path(name)
        write_sparse_checkpoint(folder / "source")
        steps = [f"{phase}-{w}" for phase in ("convert", "run") for w in who]
        results = {step: measure(step, folder) for step in steps}
        limit = decode_limit(folder)
    show_results(results, limit["tokens_per_second"])
    record.save(out, results=results, limit=limit)


def main() -> None:
    from benchmarks.common import arguments

    given = arguments(
        __doc__ or "",
        folder={"type": Path, "help": "where to work; default: a temporary folder"},
        context={
            "type": int,
            "help": "instead: a cache of so many tokens, a prefill chunk and three decode steps",
        },
        ours_only={"action": "store_true", "help": "leave mlx-lm out"},
        step={"choices": STEPS, "help": argparse.SUPPRESS},
    )
    if given.step:
        child(given.step, given.folder)
    elif given.context:
        from benchmarks.long_context import report as report_context

        report_context(given.context, kv="4/4", chunk=64, layers=40, out=given.out)
    else:
        compare(not given.ours_only, given.folder, given.out)


if __name__ == "__main__":
    main()
