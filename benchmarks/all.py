"""Every benchmark one after the other, each in a process of its own, on a machine left alone.

    python -m benchmarks.all [--full] [--only NAME[,NAME]] [--out FOLDER]

Waits first until nothing else keeps a core busy. The quick runs take about 15 minutes on 2 cores.
Conversion and the full-size model are run by hand: they need 20 to 40 GB of disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import psutil

from benchmarks.common import ROOT, console

SCRIPTS: dict[str, tuple[str, ...]] = {
    "tokens_per_second": (),
    "tokens_per_second (demo)": ("--model", "demo"),
    "cold_start": (),
    "images": (),
    "prefix_reuse": (),
    "speculation": (),
    "batch": (),
    "memory": (),
    "kv_quality": (),
    "append": (),
}
QUIET = 12.0  # per cent of all cores
PATIENCE = 600  # seconds


def wait_for_quiet() -> bool:
    """Whether the machine became quiet within the time that is worth waiting."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if psutil.cpu_percent(interval=8) < QUIET:
            return True
        console.print("waiting for other work to end", style="dim")
    return False


def main() -> None:
    doc = __doc__ or ""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", help="names of scripts, with commas between them")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/plots")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else None
    failed = []
    for name, arguments in SCRIPTS.items():
        script = name.split()[0]
        if wanted and script not in wanted:
            continue
        if not wait_for_quiet():
            console.print(f"[yellow]{name}: the machine is not quiet; run anyway.[/yellow]")
        command = [sys.executable, "-m", f"benchmarks.{script}", *arguments]
        command += ["--full"] if options.full else []
        console.rule(name)
        if subprocess.run([*command, "--out", str(options.out)], cwd=ROOT, check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
