"""Multiplying by a quantized matrix: the same result, whichever way the backend takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from magistral_mlx import backend as module
from magistral_mlx.backend import backend, mx, quantized_matmul
from magistral_mlx.quantization import FIXED_MODES, Quantization

SCHEMES = [
    Quantization(),
    Quantization(bits=3, group_size=32),
    Quantization(bits=6, group_size=128),
    *(Quantization(bits, size, mode) for mode, (bits, size) in FIXED_MODES.items()),  # type: ignore[arg-type]
]


def parts_of(scheme: Quantization, rows: int = 640, columns: int = 256) -> tuple[Any, ...]:
    matrix = mx.random.normal((rows, columns), key=mx.random.key(1))
    parts = mx.quantize(matrix, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode)
    return (*parts, None)[:3]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.mode}{s.bits}/{s.group_size}")
@pytest.mark.parametrize("rows", [1, 2, 3, 64])
@pytest.mark.parametrize("block_bytes", [32 << 20, 100_000])
def test_dequantizing_first_gives_what_the_kernel_gives(
    monkeypatch: pytest.MonkeyPatch, scheme: Quantization, rows: int, block_bytes: int
) -> None:
    """In one piece and in blocks; the difference is rounding in float32."""
    monkeypatch.setattr(module, "DEQUANTIZED_BYTES", block_bytes)
    x = mx.random.normal((1, rows, 256), key=mx.random.key(2))
    parts = parts_of(scheme)
    results = []
    for threshold in (None, 1):
        here = replace(backend(), dequantize_from_rows=threshold)
        monkeypatch.setattr(module, "backend", lambda here=here: here)
        results.append(np.array(quantized_matmul(x, *parts, scheme)))
    assert results[0].shape == (1, rows, 640)
    np.testing.assert_allclose(results[0], results[1], atol=2e-4 * np.abs(results[0]).max())


def test_linux_without_openblas_still_answers() -> None:
    program = """
import ctypes
def refuse(*_):
    raise OSError("no such library")
ctypes.CDLL = refuse
from magistral_mlx import Magistral
from magistral_mlx.backend import backend
assert backend().dequantize_from_rows is None
with Magistral.load("demo") as magistral:
    print(magistral.generate("What is 37 + 85?", temperature=0).text)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )
    assert (done.stdout, done.stderr) == ("122\n", "")
