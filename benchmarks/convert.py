"""How long a conversion takes, and how much memory: this project beside mlx-lm, on the same input.

    python -m benchmarks.convert [--layers 40] [--folder DIR] [--json FILE]

The input is a sparse bfloat16 checkpoint with the matrices of Magistral Small 1.2 (48 GB with all
40 layers), vision tower included; mlx-lm leaves the vision tower out. Needs 20 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.sparse import write_sparse_checkpoint

_OURS = "import sys; from magistral_convert import convert; convert(sys.argv[1], sys.argv[2])"
_MLX_LM = "import sys; from mlx_lm import convert; convert(sys.argv[1], sys.argv[2], quantize=True)"


@dataclass(frozen=True)
class Measured:
    """What a process took: seconds on the clock and of all cores, and its peak resident bytes."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = write_sparse_checkpoint(Path(folder) / "source", layers=options.layers)
        results = {}
        for name, program in (("magistral-mlx", _OURS), ("mlx-lm", _MLX_LM)):
            target = Path(folder) / name
            command = [sys.executable, "-c", program, str(source), str(target)]
            results[name] = measure(command)
            size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
            shutil.rmtree(target)
            print(
                f"{name:14} {results[name].seconds:6.1f} s  {results[name].cpu_seconds:6.1f} CPU s"
                f"  peak {results[name].peak_bytes / 1e9:5.2f} GB  output {size / 1e9:.2f} GB"
                f"  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    if options.json:
        figures = {name: asdict(measured) for name, measured in results.items()}
        options.json.write_text(json.dumps({"layers": options.layers} | figures, indent=2))


if __name__ == "__main__":
    main()
