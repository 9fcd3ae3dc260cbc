"""Measurement of the memory bandwidth that a program can reach, the limit of decoding."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_BYTES = 512 << 20  # far more than any processor cache
_ROUNDS = 9
_READS = 8  # reads per round on a GPU, so that the launch does not count


def measure_bandwidth() -> float:
    """Measure the bytes per second that MLX's device reads from memory, the best of a few rounds.

    A round is several matrix-vector products in bfloat16 on a GPU, and one dot product on every
    core on the CPU.
    """
    from magistral_mlx.backend import backend

    on_cpu = backend().name == "cpu"
    read, size = (_cpu_read(), _BYTES) if on_cpu else (_gpu_read(), _READS * _BYTES)
    best = 0.0
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        read()
        best = max(best, size / (time.perf_counter() - begin))
    return best


def _cpu_read() -> Callable[[], None]:
    import numpy as np

    parts = np.array_split(np.ones(_BYTES // 4, np.float32), _cores())

    def read() -> None:
        threads = [threading.Thread(target=np.dot, args=(part, part)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return read


def _gpu_read() -> Callable[[], None]:
    from magistral_mlx.backend import mx

    rows = 16384
    matrix = mx.ones((rows, _BYTES // 2 // rows), mx.bfloat16)
    vector = mx.ones((matrix.shape[1],), mx.bfloat16)
    mx.eval(matrix, vector)
    return lambda: mx.eval([matrix @ vector for _ in range(_READS)])


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
