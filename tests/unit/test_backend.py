"""Products with quantized matrices on the CPU: whichever way is taken, the result is the same."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from magistral_mlx import backend
from magistral_mlx.backend import mx, quantized_matmul
from magistral_mlx.quantization import Quantization

AFFINE, MXFP4 = Quantization(), Quantization(4, 32, "mxfp4")
MANY = 5  # streams, whatever this machine has


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch: pytest.MonkeyPatch):
    """A machine of five cores, on which no matrix is too small to be shared out."""
    monkeypatch.setattr(backend, "_cores", lambda: MANY)
    monkeypatch.setattr(backend, "_PART_BYTES", 1)
    backend._other_streams.cache_clear()
    yield
    backend._other_streams.cache_clear()


def matrix(rows: int, scheme: Quantization) -> tuple[mx.array, mx.array, mx.array | None]:
    """The parts of a random (rows, 128) matrix."""
    plain = mx.array(np.random.default_rng(rows).standard_normal((rows, 128), dtype=np.float32))
    parts = mx.quantize(plain, group_size=scheme.group_size, bits=scheme.bits, mode=scheme.mode)
    mx.eval(parts)
    return parts[0], parts[1], parts[2] if len(parts) > 2 else None


def vector(rows: int = 1) -> mx.array:
    return mx.array(np.random.default_rng(9).standard_normal((1, rows, 128), dtype=np.float32))


def in_one(x: mx.array, parts: tuple, scheme: Quantization) -> mx.array:
    weight, scales, biases = parts
    return mx.quantized_matmul(
        x,
        weight,
        scales,
        biases,
        transpose=True,
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
    )


@pytest.mark.parametrize("scheme", [AFFINE, MXFP4], ids=["affine", "mxfp4"])
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("features", [3, 5, 64, 333])
def test_sharing_rows_out_over_streams_changes_no_bit(
    features: int, rows: int, scheme: Quantization
):
    parts, x = matrix(features, scheme), vector(rows)
    shared = quantized_matmul(x, *parts, scheme)
    assert shared.shape == (1, rows, features)
    assert mx.array_equal(shared, in_one(x, parts, scheme))


def test_a_chain_of_products_over_streams_changes_no_bit():
    parts, x = matrix(128, AFFINE), vector()
    y = z = x
    for _ in range(20):
        y, z = quantized_matmul(y, *parts, AFFINE) / 10, in_one(z, parts, AFFINE) / 10
    assert mx.array_equal(y, z)


@pytest.mark.parametrize("rows", [1, 6])
def test_every_thread_has_streams_of_its_own(rows: int):
    parts, x = matrix(64, AFFINE), vector(rows)
    expected = np.array(quantized_matmul(x, *parts, AFFINE))
    found: list[object] = []

    def work() -> None:
        try:
            found.append(np.array(quantized_matmul(x, *parts, AFFINE)))
            mx.synchronize()
            mx.clear_streams()
        except RuntimeError as error:
            found.append(error)

    mx.eval(x)
    quantized_matmul(x, *parts, AFFINE)
    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [np.array_equal(result, expected) for result in found] == [True] * 3
    assert np.array_equal(np.array(quantized_matmul(x, *parts, AFFINE)), expected)


def test_a_small_matrix_is_not_worth_another_stream(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "_PART_BYTES", 256 << 10)
    assert backend._parts(mx.zeros((255, 256), mx.uint32)) == 1
    assert backend._parts(mx.zeros((512, 256), mx.uint32)) == 2
    assert backend._parts(mx.zeros((8192, 256), mx.uint32)) == MANY


@pytest.mark.parametrize("scheme", [AFFINE, MXFP4], ids=["affine", "mxfp4"])
@pytest.mark.parametrize("rows", [5, 7, 70])
@pytest.mark.parametrize("features", [3, 5, 64, 333])
@pytest.mark.parametrize("block", [32 << 20, 20_000], ids=["whole", "blocks"])
def test_more_rows_are_multiplied_by_the_dequantized_matrix(
    monkeypatch: pytest.MonkeyPatch, block: int, features: int, rows: int, scheme: Quantization
):
    monkeypatch.setattr(backend, "DEQUANTIZED_BYTES", block)
    parts, x = matrix(features, scheme), vector(rows)
    result = quantized_matmul(x, *parts, scheme)
    assert result.shape == (1, rows, features)
    assert mx.allclose(result, in_one(x, parts, scheme), rtol=1e-4, atol=1e-4)


# Memory

_FREE = """
import threading
from magistral_mlx.backend import free_memory, mx, reuse_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def work():
    for n in range(4):
        mx.eval([mx.full((7 << 20,), n) for _ in range(8)])  # 28 MiB each

reuse_memory()
before = resident()
for ask in (work, lambda: threading.Thread(target=work)):
    job = ask()
    if job:
        job.start()
        job.join()
free_memory()
print((resident() - before) >> 20)
"""


@pytest.mark.linux("malloc's settings are those of glibc, and sizes are read from /proc")
def test_what_is_kept_for_reuse_is_given_back_but_for_a_little():
    done = subprocess.run([sys.executable, "-c", _FREE], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 72


def test_a_c_library_that_has_no_such_settings_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backend, "_glibc", lambda: None)
    backend.reuse_memory()
    backend.free_memory()


def test_a_mac_without_a_gpu_multiplies_by_accelerate(monkeypatch: pytest.MonkeyPatch):
    """Its CPU takes the fast way for prompts, and no library is looked for."""

    def load(*_: object) -> None:
        raise AssertionError("a library is loaded")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(backend.ctypes, "CDLL", load)
    assert backend._has_fast_blas()


@pytest.mark.parametrize("fast", [True, False])
def test_the_cpu_dequantizes_for_prompts_where_products_are_fast(
    fast: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(backend, "_HAS_FAST_BLAS", fast)
    rows = backend.backend.__wrapped__().dequantize_from_rows
    assert rows == (backend._DEQUANTIZE_FROM if fast else None)
