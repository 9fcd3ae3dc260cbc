"""Metal's backend, imitated: what this project sees of it, and the kernels that MLX would choose.

Rules are those of mlx/backend/metal/quantized.cpp in MLX's commit 846d176.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import pytest

import magistral_mlx.backend
import magistral_mlx.cache.attention
import magistral_mlx.cache.quantized
import magistral_mlx.engine.speculate.speculator
import magistral_mlx.memory.limits
import magistral_mlx.model.linear
import magistral_mlx.model.text
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
    given = {"name": "metal", "dequantize_from_rows": None, "fused_attention": True, "few_rows": 64}
    metal = replace(here, **(given | changes))
    for module in _USERS:
        monkeypatch.setattr(module, "backend", lambda: metal)
    return metal


@dataclass(frozen=True)
class Kernel:
    """A kernel of a quantized product, its rows, and the keys that each of its threadgroups walks
    through."""

    name: str
    rows: int
    threadgroups: int
    keys: int


def quantized_kernel(x: Sequence[int], out: Sequence[int], *, transpose: bool) -> Kernel:
    """The kernel for shapes of input and output on an M1, whose limits are the lowest."""
    rows, keys, width = x[-2], x[-1], out[-1]
    batch = prod(out[:-2])
    limit = (14 if keys <= 2048 and width <= 2048 else 6) if transpose else 4  # lines 108 to 117
    if rows >= limit:  # line 1807
        tiles = -(-width // 32) * -(-rows // 32)  # lines 1062 to 1067
        return Kernel("qmm_t" if transpose else "qmm_n", rows, tiles * batch, keys)
    if transpose:
        return Kernel("qmv", rows, rows * -(-width // 8) * batch, keys)
    if keys < 1024:  # line 1850
        return Kernel("qvm", rows, rows * -(-width // 64) * batch, keys)
    parts = 32 if keys > 8192 else 8  # line 643
    return Kernel("qvm_split_k", rows, rows * -(-width // 64) * batch * parts, -(-keys // parts))


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
