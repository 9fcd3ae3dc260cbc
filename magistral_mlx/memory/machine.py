"""What a machine offers: this one as the system tells it, or another Mac by name."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.chips import Chip, find_chip, working_set

GIB = 1 << 30
APPLE_SIZES = (16, 24, 32, 48, 64, 128)  # GiB, of the table for all machines
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_LINUX_SHARE = 0.9  # of the memory; the rest is for the system


@dataclass(frozen=True)
class Machine:
    """A machine's memory, in bytes.

    limit: what MLX may use of it: on a Mac the working set that Metal recommends.
    available: what is free right now, None for a machine that is only named.
    """

    name: str
    memory: int
    limit: int
    available: int | None = None
    chip: Chip | None = None
    is_mac: bool = True


def this_machine() -> Machine:
    """The machine that this runs on."""
    import psutil

    from magistral_mlx.backend import backend, mx

    available = int(psutil.virtual_memory().available)
    info = mx.device_info()
    if backend().name == "metal":
        name, memory = str(info["device_name"]), int(info["memory_size"])
        limit = int(info["max_recommended_working_set_size"])
        chip = find_chip(name, memory_bytes=memory)
        return Machine(name, memory, limit, available, chip)
    if backend().name == "cuda":
        name, memory = str(info.get("device_name", "GPU")), _gpu_memory(info)
        return Machine(name, memory, int(memory * _LINUX_SHARE), is_mac=False)
    memory = min([psutil.virtual_memory().total, *_cgroup_limits()])
    name = f"{platform.system()} {platform.machine()}"
    return Machine(name, memory, int(memory * _LINUX_SHARE), min(available, memory), is_mac=False)


def _gpu_memory(info: Mapping[str, str | int]) -> int:
    """Memory of a CUDA device, under whichever name this MLX reports it."""
    sizes = (info.get(key) for key in ("memory_size", "total_memory"))
    return next((int(size) for size in sizes if size), 8 * GIB)


def named_machine(name: str) -> Machine:
    """Another Mac: its memory, and its chip if it matters, as in "32GB" or "M3 Max 64 GB".

    Raises:
        InvalidOption: no memory size in it, or a chip that nobody sells.
    """
    found = re.fullmatch(r"\s*(.*?)[\s,]*(\d+)\s*(?:GB|GiB|G)\s*", name, re.IGNORECASE)
    if not found or not 8 <= int(found[2]) <= 1024:
        raise InvalidOption(
            f"{name!r} names no machine: give its memory, as in '32GB' or 'M3 Max 64GB'."
        )
    memory = int(found[2]) * GIB
    chip = find_chip(found[1], memory_bytes=memory) if found[1] else None
    if found[1] and chip is None:
        raise InvalidOption(
            f"{found[1]!r} is no Apple chip that this version knows. Give one such as 'M4 Pro', "
            "or the memory alone."
        )
    label = f"{chip.name}, {found[2]} GB" if chip else f"{found[2]} GB Mac"
    return Machine(label, memory, working_set(memory), chip=chip)


def _cgroup_limits() -> list[int]:
    """Memory limits that a container sets; none where there is no container."""
    limits = []
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) > 0:
            limits.append(int(text))
    return limits
