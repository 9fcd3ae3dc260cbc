"""What a measurement leaves behind: the machine, the versions, and a line to paste."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import Any

from magistral_mlx.bench.bandwidth import measure_bandwidth
from magistral_mlx.bench.compare import Comparison, Speed
from magistral_mlx.bench.process import OURS, Program, ours, version
from magistral_mlx.memory.chips import GIB
from magistral_mlx.memory.machine import Machine


@dataclass(frozen=True)
class Limit:
    """What decoding cannot exceed on this machine. Bandwidths in bytes per second.

    published: of the chip, by its maker; None off the Mac. reached: by a plain read, just now.
    """

    published: float | None
    reached: float

    @property
    def bandwidth(self) -> float:
        """The one that shares are taken of."""
        return self.published or self.reached

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        kind = "published for this chip" if self.published else "measured here"
        return f"{self.bandwidth / 1e9:.0f} GB/s, {kind}"

    def share(self, speed: Speed, bytes_per_token: int) -> float:
        """Decoding over what the bandwidth allows."""
        return speed.decode.median * bytes_per_token / self.bandwidth


def limit_of(machine: Machine) -> Limit:
    """The limit of this machine; takes a second and half a gigabyte."""
    published = machine.chip.bandwidth * 1e9 if machine.chip else None
    return Limit(published, measure_bandwidth())


def versions(programs: list[Program]) -> dict[str, str | None]:
    """Version of MLX and of every runtime."""
    mlx = importlib.metadata.version("mlx")
    return {"mlx": mlx, **{program.label: version(program) for program in programs}}


def describe_machine(machine: Machine) -> dict[str, Any]:
    """The machine, for a record that is read elsewhere."""
    system = f"macOS {platform.mac_ver()[0]}" if machine.is_mac else platform.platform()
    return {
        "name": machine.name,
        "memory": machine.memory,
        "gpu_limit": machine.limit,
        "cores": os.cpu_count(),
        "system": system,
        "python": platform.python_version(),
    }


def line_to_paste(
    model: str, machine: Machine, result: Comparison, limit: Limit, bytes_at: dict[int, int]
) -> str:
    """One line that says it all, for an issue."""
    about = describe_machine(machine)
    parts = [
        f"{OURS} {version(ours())}",
        f"{machine.name} {machine.memory / GIB:.0f} GB, {about['system']}",
        model,
    ]
    for speed in result.speeds:
        share = limit.share(speed, bytes_at[speed.context])
        parts.append(
            f"{speed.label} at {speed.context}: prefill {speed.prefill.median:.1f}, decode "
            f"{speed.decode.median:.2f} tokens/s ({share:.0%} of {limit.bandwidth / 1e9:.0f} GB/s),"
            f" first token {speed.first.median:.2f} s, peak {speed.peak / GIB:.2f} GiB"
        )
    if result.disturbances:
        parts.append(f"disturbed by {', '.join(sorted(result.disturbances))}")
    return " | ".join(parts)
