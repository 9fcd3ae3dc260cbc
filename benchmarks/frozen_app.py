"""A frozen application: whether an app that embeds the package runs without a Python.

    python -m benchmarks.frozen_app [--keep DIR]

Builds examples/script.py into one folder, copies it away from the checkout, and runs it there with
an empty environment: the demo model must answer a sum and name an image. Shows the time and the
size of the build, and the time of the first and the second start.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import ROOT, Record, arguments, console, show

HOOKS = ROOT / "magistral_mlx" / "__pyinstaller"
# What a development environment holds and an app does not need.
LEFT_OUT = (
    "torch",
    "transformers",
    "mlx_lm",
    "numba",
    "scipy",
    "pandas",
    "matplotlib",
    "pytest",
    "IPython",
)
EXPECTED = ("answer: 122", "image: A red circle.")


def main() -> None:
    given = arguments(
        __doc__ or "",
        keep={"type": Path, "help": "leave the built app in this folder"},
    )
    if importlib.util.find_spec("PyInstaller") is None:
        sys.exit("PyInstaller is not installed here: pip install pyinstaller")
    record = Record("frozen_app")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="frozen-") as scratch:
        built, figures["build_seconds"] = build(Path(scratch) / "build")
        app = (given.keep or Path(scratch) / "elsewhere") / built.name
        app.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(built, app)
        figures["bytes"] = size(app)
        for start in ("first", "second"):
            output, figures[f"{start}_start_seconds"] = run(app / "script", Path(scratch))
            missing = [line for line in EXPECTED if line not in output.splitlines()]
            if missing:
                sys.exit(f"the frozen app did not say {missing[0]!r}. It said:\n{output}")
    console.print(output.rstrip(), markup=False)
    rows = [
        ["build", f"{figures['build_seconds']:.1f} s"],
        ["size", f"{figures['bytes'] / 1e6:,.0f} MB"],
        ["first start", f"{figures['first_start_seconds']:.2f} s"],
        ["second start", f"{figures['second_start_seconds']:.2f} s"],
    ]
    show("An app without Python", ["", "figure"], rows)
    record.save(given.out, **figures)


def build(folder: Path) -> tuple[Path, float]:
    """The folder of the app, and the seconds that it took."""
    command = [
        *(sys.executable, "-m", "PyInstaller", str(ROOT / "examples" / "script.py")),
        *("--onedir", "--noconfirm", "--log-level", "WARN"),
        *("--additional-hooks-dir", str(HOOKS)),
        *("--add-data", f"{ROOT / 'examples' / 'circle.png'}:."),
        *(part for name in LEFT_OUT for part in ("--exclude-module", name)),
        *("--distpath", str(folder / "dist")),
        *("--workpath", str(folder / "work")),
        *("--specpath", str(folder)),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT)
    return folder / "dist" / "script", time.perf_counter() - start


def run(program: Path, folder: Path) -> tuple[str, float]:
    """Run the app with an empty environment; return its output and the seconds it took."""
    start = time.perf_counter()
    done = subprocess.run(
        [str(program)],
        cwd=folder,
        env={"HOME": str(folder), "PATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"the frozen app ended with {done.returncode}:\n{done.stdout}")
    return done.stdout, seconds


def size(folder: Path) -> int:
    """Bytes of all files, each once."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    )


if __name__ == "__main__":
    main()
