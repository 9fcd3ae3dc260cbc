"""Memory of a machine: this one, as the system reports it, or another Mac by name."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from magistral_mlx.errors import InvalidOption
from magistral_mlx.measurements import NOTHING_MEASURED, Measurements, read_measurements
from magistral_mlx.memory.cgroup import memory_groups
from magistral_mlx.memory.chips import GIB, Chip, find_chip, working_set

APPLE_SIZES = (16, 24, 32, 48, 64, 128)  # GiB, of the table for all machines
_LINUX_SHARE = 0.9  # of the memory for MLX; the rest is for the system
_NAMED = re.compile(
    r"\s*(.*?)[\s,]*(\d+)\s*(?:GB|GiB|G)(?:[\s,]+macOS\s*(\d+)(?:\.\d+)*)?\s*", re.IGNORECASE
)


@dataclass(frozen=True)
class Machine:
    """A machine's memory, in bytes.

    limit: bytes that MLX may use; on a Mac Metal's recommended working set.
    available: bytes free now, None for a machine given by name. architecture: the GPU's, as Metal
    reports it. measured: speeds that `doctor --check` has measured.
    """

    name: str
    memory: int
    limit: int
    available: int | None = None
    chip: Chip | None = None
    is_mac: bool = True
    architecture: str | None = None
    measured: Measurements = NOTHING_MEASURED


def this_machine() -> Machine:
    """Describe the machine that this process runs on."""
    machine = _this_machine()
    return replace(machine, measured=read_measurements(machine.name))


def _this_machine() -> Machine:
    import psutil

    from magistral_mlx.backend import backend, mx

    available = int(psutil.virtual_memory().available)
    info = mx.device_info()
    if backend().name == "metal":
        name, memory = str(info["device_name"]), int(info["memory_size"])
        limit = int(info["max_recommended_working_set_size"])
        chip = find_chip(name, memory_bytes=memory)
        architecture = str(info["architecture"])
        return Machine(name, memory, limit, available, chip, architecture=architecture)
    if backend().name == "cuda":
        name, memory = str(info.get("device_name", "GPU")), _gpu_memory(info)
        return Machine(name, memory, int(memory * _LINUX_SHARE), is_mac=False)
    groups = memory_groups()
    memory = min([psutil.virtual_memory().total, *(group.limit for group in groups)])
    available = min([available, *(max(0, group.limit - group.used) for group in groups)])
    name = f"{platform.system()} {platform.machine()}"
    return Machine(name, memory, int(memory * _LINUX_SHARE), available, is_mac=False)


def _gpu_memory(info: Mapping[str, str | int]) -> int:
    """Memory of a CUDA device, whose key depends on the version of MLX."""
    sizes = (info.get(key) for key in ("memory_size", "total_memory"))
    return next((int(size) for size in sizes if size), 8 * GIB)


def named_machine(name: str) -> Machine:
    """Describe another Mac by memory, and optionally chip and system.

    Examples: "32GB", "M3 Max 64 GB", "24GB macOS 26". The system decides the GPU's share of the
    memory; without one it is the smallest share that the chip came with.

    Raises:
        InvalidOption: no memory size, or an unknown chip.
    """
    found = _NAMED.fullmatch(name)
    if not found or not 8 <= int(found[2]) <= 1024:
        raise InvalidOption(
            f"{name!r} is not a machine: give its memory, as in '32GB', 'M3 Max 64GB' or "
            "'24GB macOS 26'."
        )
    memory = int(found[2]) * GIB
    chip = find_chip(found[1], memory_bytes=memory) if found[1] else None
    if found[1] and chip is None:
        raise InvalidOption(
            f"{found[1]!r} is not an Apple chip known to this version. Give one such as 'M4 Pro', "
            "or the memory alone."
        )
    label = f"{chip.name}, {found[2]} GB" if chip else f"{found[2]} GB Mac"
    macos = int(found[3]) if found[3] else chip.macos if chip else None
    label += f", macOS {macos}" if macos else ""
    return Machine(label, memory, working_set(memory, macos), chip=chip)
