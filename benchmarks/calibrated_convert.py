"""Memory and time that a layer of the full size takes in a calibrated conversion, against its plan.

    python -m benchmarks.calibrated_convert [--method gptq] [--layers N] [--tokens N]

The embedding and N layers have random weights, the head and the vision tower are zeros that take no
disk. The conversion ends when the layers are done, and what it wrote is deleted: 2.5 GB of disk for
the embedding and a layer, 1.1 GB for each that follows, and a third of that for the output.

The plan counts MLX's arrays and those of NumPy, which the footprint of the process has and MLX's
own peak has not. A GPU computes in two bytes a value, a CPU in four: both plans are shown.
"""

from __future__ import annotations

import math
import re
import resource
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import ROOT, Record, arguments, show
from benchmarks.sparse import write_sparse_checkpoint
from magistral_convert import Converting, ConvertOptions, prepare, run
from magistral_convert.calibration import memory, text
from magistral_convert.conversion import Conversion
from magistral_convert.options import METHODS
from magistral_convert.recipe import EMBEDDING, layer_of
from magistral_mlx.backend import backend, mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.header import StoredTensor

_ROWS = 1024  # that are written at once


class _Enough(Exception):
    """The layers are done."""


class Meter:
    """Wall and CPU seconds, and the peaks of memory, from the embedding to the last layer."""

    def __init__(self, conversion: Conversion) -> None:
        names = [tensor.name for tensor in conversion.plan.tensors]
        self._first = names.index(EMBEDDING) + 1
        self._last = max(n for n, name in enumerate(names) if layer_of(name) is not None) + 1
        self._before = psutil.Process().memory_info().rss
        self._start: tuple[float, float] | None = None
        self.figures: dict[str, Any] = {}

    def __call__(self, progress: object) -> None:
        """Begin when the embedding is done. Raises `_Enough` after the layers."""
        if not isinstance(progress, Converting):
            return
        if self._start is None and progress.tensors_done >= self._first:
            self._start = time.monotonic(), time.process_time()
            mx.reset_peak_memory()
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory
        if self._start and progress.tensors_done > self._last:
            self.figures = {
                "seconds": time.monotonic() - self._start[0],
                "cpu_seconds": time.process_time() - self._start[1],
                "mlx_peak": mx.get_peak_memory(),
                "footprint": _peak_resident() - self._before,
            }
            raise _Enough


def write_checkpoint(folder: Path, layers: int) -> Path:
    """Write a checkpoint with random weights in the embedding and all layers."""
    write_sparse_checkpoint(folder, layers=layers)
    rng = np.random.default_rng(0)
    for name, tensor in Checkpoint.open(folder).tensors.items():
        if name == EMBEDDING or layer_of(name) is not None or len(tensor.shape) == 1:
            _fill(tensor, rng)
    return folder


def _fill(tensor: StoredTensor, rng: np.random.Generator) -> None:
    """Write ones for a norm, else weights that keep the size of activations; rows repeat."""
    count, columns = math.prod(tensor.shape), tensor.shape[-1]
    values = np.ones(columns, np.float32)
    if len(tensor.shape) == 2:
        values = rng.standard_normal(min(_ROWS * columns, count), np.float32) / math.sqrt(columns)
    raw = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        for start in range(0, 2 * count, len(raw)):
            file.write(raw[: 2 * count - start])


def _peak_resident() -> int:
    """The most resident bytes of this process, on Linux since that was reset."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
        if found:
            return int(found[1]) << 10
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def planned(conversion: Conversion, float_bytes: int) -> tuple[int, int]:
    """Return the planned peak of the layers, and what the hidden states have of it."""
    options, config = conversion.options, conversion.source.checkpoint.config.text
    peak = memory.peak_bytes(
        conversion.plan,
        replace(config, vocab_size=1),  # without the head
        options.text_tokens,
        float_bytes=float_bytes,
        compensates=options.method == "gptq",
    )
    return peak, memory.state_bytes(config, options.text_tokens, float_bytes)


def main() -> None:
    given = arguments(
        __doc__ or "",
        method={"choices": METHODS, "default": METHODS[0]},
        layers={"type": int, "default": 1},
        tokens={"type": int, "help": "of calibration text; default that of the method"},
        folder={"type": Path, "default": ROOT / "build", "help": "where to work; default build"},
    )
    record = Record("calibrated_convert", variant=given.method)
    given.folder.mkdir(parents=True, exist_ok=True)
    options = ConvertOptions(
        calibration=(text.DEFAULT,), calibration_tokens=given.tokens, method=given.method
    )
    with tempfile.TemporaryDirectory(prefix="calibrated-", dir=given.folder) as name:
        source = write_checkpoint(Path(name) / "source", given.layers)
        conversion = prepare(source, Path(name) / "out", options)
        meter = Meter(conversion)
        with suppress(_Enough):
            run(conversion, meter)
    found = meter.figures
    plans = {float_bytes: planned(conversion, float_bytes) for float_bytes in (2, 4)}
    rows = [
        [f"{options.text_tokens:,}", given.layers]
        + [f"{found[key] / 1e9:.2f} GB" for key in ("footprint", "mlx_peak")]
        + [f"{peak / 1e9:.2f} GB" for peak, _ in plans.values()]
        + [f"{found[key] / given.layers:.0f} s" for key in ("cpu_seconds", "seconds")]
    ]
    header = ["tokens", "layers", "footprint", "MLX's peak", "planned, 2 bytes", "4 bytes"]
    title = f"--method {given.method} on {backend().name}, which has {backend().dtype.size} bytes"
    show(title, [*header, "CPU time a layer", "time a layer"], rows)
    record.save(
        given.out, method=given.method, tokens=options.text_tokens, plans=plans, measured=found
    )


if __name__ == "__main__":
    main()
