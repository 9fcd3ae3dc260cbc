"""Disturbances of a measurement: heat, memory pressure, other work. They are read, never set.

On a Mac `notifyutil` reports thermal pressure and `sysctl` memory pressure, both without special
rights. On Linux the kernel's pressure figures report memory pressure and other work on the cores;
heat is not read there. Both report swap. Missing figures are not guessed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_THERMAL = "com.apple.system.thermalpressurelevel"
# The levels of OSThermalNotification.h and of kern.memorystatus_vm_pressure_level.
_THERMAL_LEVELS = {1: "moderate heat", 2: "heavy heat", 3: "trapping heat", 4: "sleeping for heat"}
_MEMORY_LEVELS = {2: "memory pressure", 4: "critical memory pressure"}
_BUSY = 20.0  # per cent of the last ten seconds in which work waited for a core or for memory
_SWAPPED = 64 << 20  # bytes; systems swap out less than that at any time


@dataclass(frozen=True)
class Conditions:
    """Disturbances in words, empty if there are none. swapped: bytes in swap, None if unknown."""

    disturbances: tuple[str, ...]
    swapped: int | None

    @property
    def quiet(self) -> bool:
        return not self.disturbances


def read_conditions(*, working: bool = False) -> Conditions:
    """Read the present conditions. `working`: the measurement itself keeps the cores busy, so
    ignore their load."""
    if sys.platform == "darwin":
        return mac_conditions(
            _output("notifyutil", "-g", _THERMAL),
            _output("sysctl", "-n", "kern.memorystatus_vm_pressure_level"),
            _output("sysctl", "-n", "vm.swapusage"),
        )
    pressure = {name: _text(Path("/proc/pressure") / name) for name in ("cpu", "memory")}
    cpu = "" if working else pressure["cpu"]
    return linux_conditions(cpu, pressure["memory"], _text(Path("/proc/meminfo")))


def swapping(before: Conditions, after: Conditions) -> tuple[str, ...]:
    """Describe what was swapped out in between; empty if nothing was, or if it is unknown."""
    if before.swapped is None or after.swapped is None:
        return ()
    grown = after.swapped - before.swapped
    return (f"{grown / (1 << 30):.1f} GiB swapped out",) if grown > _SWAPPED else ()


def mac_conditions(thermal: str, memory: str, swap: str) -> Conditions:
    """Parse the output of `notifyutil` and of two `sysctl`s."""
    found = []
    level = re.search(rf"{re.escape(_THERMAL)}\s+(\d+)", thermal)
    if level and int(level[1]) in _THERMAL_LEVELS:
        found.append(_THERMAL_LEVELS[int(level[1])])
    if memory.strip().isdigit() and int(memory) in _MEMORY_LEVELS:
        found.append(_MEMORY_LEVELS[int(memory)])
    used = re.search(r"used = ([\d.]+)M", swap)
    return Conditions(tuple(found), int(float(used[1]) * (1 << 20)) if used else None)


def linux_conditions(cpu: str, memory: str, meminfo: str) -> Conditions:
    """Parse /proc/pressure/cpu, /proc/pressure/memory and /proc/meminfo."""
    found = []
    for text, name in ((cpu, "other work on the cores"), (memory, "memory pressure")):
        some = re.search(r"^some avg10=([\d.]+)", text, re.MULTILINE)
        if some and float(some[1]) > _BUSY:
            found.append(f"{name} ({float(some[1]):.0f} % of the time)")
    sizes = dict(re.findall(r"^Swap(Total|Free):\s+(\d+) kB", meminfo, re.MULTILINE))
    swapped = (int(sizes["Total"]) - int(sizes["Free"])) * 1024 if len(sizes) == 2 else None
    return Conditions(tuple(found), swapped)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
