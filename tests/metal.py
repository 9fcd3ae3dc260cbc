"""Metal's backend, imitated: what this project sees of it, and the kernels of products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

import magistral_mlx.backend
import magistral_mlx.cache.attention
import magistral_mlx.cache.quantized
import magistral_mlx.engine.speculate.speculator
import magistral_mlx.memory.limits
import magistral_mlx.model.linear
import magistral_mlx.model.text
from benchmarks.metal_rules import Kernel, quantized_kernel
from magistral_mlx.backend import Backend, mx

_USERS = (
    magistral_mlx.backend,
    magistral_mlx.cache.attention,
    magistral_mlx.cache.quantized,
    magistral_mlx.engine.speculate.speculator,
    magistral_mlx.memory.limits,
    magistral_mlx.model.linear,
    magistral_mlx.model.text,
)


def use_metal(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Backend:
    """Let the decoder and its caches take the ways that they take on Metal."""
    here = magistral_mlx.backend.backend()
    given = {
        "name": "metal",
        "dequantize_from_rows": None,
        "fused_attention": True,
        "few_rows": 64,
        "packed_attention": True,
    }
    metal = replace(here, **(given | changes))
    for module in _USERS:
        monkeypatch.setattr(module, "backend", lambda: metal)
    return metal


@contextmanager
def recorded_kernels() -> Iterator[list[Kernel]]:
    """The kernels of all quantized products that are built."""
    multiply, kernels = mx.quantized_matmul, list[Kernel]()

    def record(x: mx.array, *parts: Any, transpose: bool = True, **scheme: Any) -> mx.array:
        y = multiply(x, *parts, transpose=transpose, **scheme)
        kernels.append(quantized_kernel(x.shape, y.shape, transpose=transpose))
        return y

    mx.quantized_matmul = record  # type: ignore[assignment]
    try:
        yield kernels
    finally:
        mx.quantized_matmul = multiply  # type: ignore[assignment]
