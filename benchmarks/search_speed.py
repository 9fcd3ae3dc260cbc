"""Time that the search of scales takes, in all threads that a conversion searches with.

    python -m benchmarks.search_speed [--rounds N]

Random bfloat16 weights of Magistral's hidden size with the importance of columns that trained
models have, packed as they are written. GB/s are of the bfloat16 weights that are searched; seconds
are those that all of Magistral's 24 billion weights would take at this rate, computed.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.common import Record, options, show
from magistral_convert.calibration.floating import search_floating
from magistral_convert.calibration.search import search
from magistral_convert.pipeline import search_threads
from magistral_convert.quantize import bfloat16_values
from magistral_mlx.quantization import AFFINE_BITS, Quantization

ROWS, COLUMNS = 512, 5120  # of a thread
PIECES = 2  # of each thread in a round
WEIGHTS = 24.0e9
FLOATING = (
    Quantization(4, 32, "mxfp4"),
    Quantization(4, 16, "nvfp4"),
    Quantization(8, 32, "mxfp8"),
)


def main() -> None:
    given = options(__doc__ or "", quick=10)
    record = Record("search_speed")
    rng = np.random.default_rng(0)
    weights = bfloat16_values((0.02 * rng.standard_normal((ROWS, COLUMNS))).astype(np.float32))
    importance = np.exp(rng.standard_normal(COLUMNS)).astype(np.float32)
    threads = search_threads()
    rates: dict[str, float] = {}
    with ThreadPoolExecutor(threads) as pool:
        for scheme in (*(Quantization(bits, 64) for bits in AFFINE_BITS), *FLOATING):
            affine = scheme.mode == "affine"
            find = search if affine else search_floating

            def piece(_: int, find=find, scheme=scheme) -> None:
                find(weights, importance, scheme)

            piece(0)  # compiled
            seconds = []
            for _ in range(given.rounds):
                start = time.perf_counter()
                list(pool.map(piece, range(PIECES * threads)))
                seconds.append(time.perf_counter() - start)
            name = f"{scheme.bits} bits" if affine else scheme.mode
            rates[name] = PIECES * threads * weights.size / min(seconds)
    rows = [
        [name, f"{2e-9 * rate:.2f}", f"{1e9 * threads / rate:.1f}", f"{WEIGHTS / rate:.0f}"]
        for name, rate in rates.items()
    ]
    header = ["format", "GB/s", "ns a weight and thread", "seconds for all weights"]
    show(f"Search of scales, {threads} threads, best of {given.rounds} rounds", header, rows)
    record.save(given.out, threads=threads, weights_per_second=rates)


if __name__ == "__main__":
    main()
