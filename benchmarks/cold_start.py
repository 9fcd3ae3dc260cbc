"""From the start of a process to its first token, and what importing costs.

    python -m benchmarks.cold_start [--full]

Each command answers one question with one token, greedily, on the demo model at 4 bits and ends;
its whole time on the clock counts. `mlx_vlm.generate` fails on the folder as it is, for want of a
padding token, so it gets a copy with a tokenizer_config.json that names one; it reads the bare
question, without the model's template, which saves it mistral-common. Beside them, the time of
`--help` and of the import, each in a fresh process; an empty Python is their floor. All of them may
use compiled bytecode, as after an installation. Outputs are not compared, for the prompts differ:
ours has the model's system prompt, and mlx_lm.generate spells out the template's control tokens.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.common import (
    COLOURS,
    VLM_PYTHON,
    Figure,
    Record,
    console,
    options,
    peers,
    ratio,
    ratios,
    show,
    spread,
)
from benchmarks.tokens_per_second import checkpoint_of

QUESTION = "What is 37 + 85?"
BIN = Path(sys.executable).parent
FIRST = "magistral-mlx generate"
THEIRS = ("mlx_lm.generate", "mlx_vlm.generate")


def commands(folder: Path) -> dict[str, list[str]]:
    """Commands to be timed, by name."""
    one = ["--prompt", QUESTION, "--max-tokens", "1", "--model"]
    python, ours = sys.executable, str(BIN / "magistral-mlx")
    mlx_lm = [python, "-m", "mlx_lm", "generate"]
    mlx_vlm = [str(VLM_PYTHON), "-m", "mlx_vlm", "generate"]
    greedy = ["--max-tokens", "1", "--temperature", "0", "--no-stats"]
    found = {
        FIRST: [ours, "generate", QUESTION, *greedy, "--model", str(folder)],
        "mlx_lm.generate": [*mlx_lm, "--temp", "0", *one, str(folder)],
        "mlx_vlm.generate": [*mlx_vlm, "--temperature", "0", *one, str(padded(folder))],
        "an empty Python": [python, "-c", "pass"],
        "import magistral_mlx": [python, "-c", "import magistral_mlx"],
        "import mlx_lm": [python, "-c", "import mlx_lm"],
        "import mlx_vlm": [str(VLM_PYTHON), "-c", "import mlx_vlm"],
        "magistral-mlx --help": [ours, "--help"],
        "mlx_lm.generate --help": [*mlx_lm, "--help"],
    }
    return {name: command for name, command in found.items() if Path(command[0]).exists()}


def padded(folder: Path) -> Path:
    """The same model, with a padding token for tokenizers that want one."""
    copy = folder.with_name(f"{folder.name}-padded")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (copy / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return copy


def run(command: list[str]) -> tuple[float, str]:
    """Seconds, and the last line of stderr where the command failed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode == 0:
        return seconds, ""
    lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
    return seconds, lines[-1]


def measure(found: dict[str, list[str]], rounds: int) -> tuple[dict[str, Figure], dict[str, str]]:
    """Name -> seconds, and name -> error of what cannot run. All take turns."""
    errors = {}
    for name, command in found.items():
        console.print(name, style="dim")
        _, error = run(command)  # files come into the page cache
        if error:
            errors[name] = error
    times: dict[str, list[float]] = {name: [] for name in found if name not in errors}
    for _ in range(rounds):
        for name in list(times):
            seconds, error = run(found[name])
            times[name].append(seconds)
            if error:
                errors[name] = error
                del times[name]
    return {name: Figure.of(seconds) for name, seconds in times.items()}, errors


def main() -> None:
    given = options(__doc__ or "")
    record = Record("cold_start", list(peers(blas=False)))
    figures, errors = measure(commands(checkpoint_of("demo").folder), given.rounds + 2)
    if FIRST in errors:
        sys.exit(f"{FIRST} failed: {errors[FIRST]}")
    floor = figures["an empty Python"].median
    first = figures[FIRST]
    theirs = {name: figures[name] for name in THEIRS if name in figures}
    rows: list[list[Any]] = [
        [
            name,
            f"{figure.median:.2f} s",
            f"{figure.median - floor:.2f} s",
            spread(figure),
            ratio(first, figure) if name in theirs else "",
        ]
        for name, figure in figures.items()
    ]
    rows += [[name, "cannot run", "", "", ""] for name in errors]
    header = ["command", "median", "above an empty Python", "spread", "ours / theirs"]
    show("One process", header, rows)
    for name, error in errors.items():
        console.print(f"{name}: {error}", highlight=False)
    draw(record, given.out, figures)
    compared = {name: ratios(first.values, figure.values) for name, figure in theirs.items()}
    record.save(given.out, figures=figures, ratios=compared, errors=errors)


def draw(record: Record, out: Path, figures: dict[str, Figure]) -> None:
    with record.plot(out, title="From the start of the process") as (ax,):
        names = list(figures)
        middles = [statistics.median(figures[name].values) for name in names]
        colours = [
            COLOURS["magistral-mlx" if "magistral" in name else "mlx-lm"]
            if "empty" not in name
            else "#adb5bd"
            for name in names
        ]
        ax.barh(range(len(names)), middles, color=colours)
        ax.set_yticks(range(len(names)), names, fontsize=8)
        ax.invert_yaxis()
        ax.set(xlabel="seconds")
        ax.grid(axis="x", color="#e9ecef")
        ax.grid(visible=False, axis="y")


if __name__ == "__main__":
    main()
