"""Apple's chips: memory bandwidth, compute, and Metal's share of the memory.

The figures and their sources are in `chips.json`. Values computed from them are limits or
estimates, to be labelled as computed and never as measured.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

GIB = 1 << 30

# Share of the memory that Metal recommends (`recommendedMaxWorkingSetSize`), by memory in GiB.
# Until macOS 15: 2/3 up to 32 GiB, 3/4 above. llama.cpp's logs print 11453.25 MB of 16 GiB,
# 17179.89 of 24, 22906.50 of 32, 28991.03 of 36, 38654.71 of 48, 51539.61 of 64, 103079.22 of 128.
# From macOS 26: 12713.12 MB of 16 GiB, 19069.67 of 24, 26800.60 of 32 (an M2 Max with macOS 26.4,
# so the system decides and not the chip), 30150.67 of 36, 40200.90 of 48, 55662.79 of 64,
# 115448.73 of 128. A size between two of these takes the share of the smaller one.
_SHARES = ((0, 2, 3), (36, 3, 4))
_SHARES_26 = ((0, 2, 3), (16, 37, 50), (32, 39, 50), (64, 81, 100), (128, 21, 25))


@dataclass(frozen=True)
class Chip:
    """One variant of a chip.

    name: as macOS reports it ("Apple M3 Max"). bandwidth: peak memory bandwidth, GB/s (10^9).
    memory: sizes sold, GiB. fp32_tflops: of the GPU; fp16 is the same. matrix_tflops: fp16 of the
    GPU's matrix units, None before M5. TFLOPS are None if no figure was published.
    """

    name: str
    gpu_cores: int
    bandwidth: float
    memory: tuple[int, ...]
    year: int
    fp32_tflops: float | None
    matrix_tflops: float | None
    source: str
    compute_source: str | None

    @property
    def fp16_tflops(self) -> float | None:
        """Highest published half-precision rate, of the matrix units if the chip has any."""
        return self.matrix_tflops or self.fp32_tflops

    @property
    def macos(self) -> int | None:
        """Oldest macOS of the chip, if that changes the GPU's share of the memory; else None."""
        generation = re.match(r"Apple M(\d+)", self.name)
        return 26 if generation and int(generation[1]) >= 5 else None


@cache
def chips() -> tuple[Chip, ...]:
    """All chips, oldest first; variants of a chip from the smallest to the largest."""
    table = json.loads(files(__package__).joinpath("chips.json").read_text("utf-8"))
    return tuple(Chip(**{**row, "memory": tuple(row["memory"])}) for row in table["chips"])


def find_chip(
    name: str, gpu_cores: int | None = None, memory_bytes: int | None = None
) -> Chip | None:
    """Return the chip of that name, or None if the table lacks it.

    Among variants, `gpu_cores` decides, then the memory, since some sizes come with one variant
    only, then the smallest variant, so that computed limits are not too high.

    Args:
        name: as `sysctl machdep.cpu.brand_string` prints it, or "M3 Max" alone; case-insensitive.
    """
    wanted = name.strip().lower().removeprefix("apple ")
    found = [chip for chip in chips() if chip.name.lower() == f"apple {wanted}"]
    if gpu_cores is not None:
        found = [chip for chip in found if chip.gpu_cores == gpu_cores] or found
    if memory_bytes is not None:
        gib = round(memory_bytes / GIB)
        found = [chip for chip in found if gib in chip.memory] or found
    return found[0] if found else None


def working_set(memory_bytes: int, macos: int | None = None) -> int:
    """Bytes that Metal lets the GPU use on a Mac with this memory, by macOS's default.

    For planning for another Mac: on the Mac itself MLX reports the actual figure, which also
    follows `sudo sysctl iogpu.wired_limit_mb`.

    Args:
        macos: major version; None for the smaller share, that of macOS 15 and before.
    """
    shares = _SHARES_26 if macos is not None and macos >= 26 else _SHARES
    gib = memory_bytes / GIB
    *_, (_, part, whole) = (share for share in shares if share[0] <= gib)
    return memory_bytes * part // whole
