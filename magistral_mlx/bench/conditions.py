"""What disturbs a measurement: heat, memory pressure, other work. Read from the system, never set.

On a Mac `notifyutil` tells the thermal pressure and `sysctl` that of memory, both without rights.
On Linux the kernel's pressure figures tell memory pressure and other work on the cores; heat is not
read there. Both tell how much is swapped out. What a system does not tell is not guessed.
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
_SWAPPED = 64 << 20  # bytes; less is what a system swaps out now and then without need


@dataclass(frozen=True)
class Conditions:
    """Disturbances, in words; none where all is quiet. `swapped`: bytes in swap, None unknown."""

    disturbances: tuple[str, ...]
    swapped: int | None

    @property
    def quiet(self) -> bool:
        return not self.disturbances


def read_conditions(*, working: bool = False) -> Conditions:
    """What the system says now. `working`: cores are busy with what is measured, so never mind."""
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
    """What was swapped out in between, in words; none if nothing was, or nobody knows."""
    if before.swapped is None or after.swapped is None:
        return ()
    grown = after.swapped - before.swapped
    return (f"{grown / (1 << 30):.1f} GiB swapped out",) if grown > _SWAPPED else ()


def mac_conditions(thermal: str, memory: str, swap: str) -> Conditions:
    """Conditions from the output of `notifyutil` and of two `sysctl`s."""
    found = []
    level = re.search(rf"{re.escape(_THERMAL)}\s+(\d+)", thermal)
    if level and int(level[1]) in _THERMAL_LEVELS:
        found.append(_THERMAL_LEVELS[int(level[1])])
    if memory.strip().isdigit() and int(memory) in _MEMORY_LEVELS:
        found.append(_MEMORY_LEVELS[int(memory)])
    used = re.search(r"used = ([\d.]+)M", swap)
    return Conditions(tuple(found), int(float(used[1]) * (1 << 20)) if used else None)


def linux_conditions(cpu: str, memory: str, meminfo: str) -> Conditions:
    """Conditions from /proc/pressure/cpu, /proc/pressure/memory and /proc/meminfo."""
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
