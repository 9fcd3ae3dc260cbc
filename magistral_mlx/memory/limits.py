"""MLX's own limits, which are one per process: set for a plan, put back afterwards.

The memory limit refuses nothing: above it MLX waits for running work before it allocates more,
which is what keeps work in flight within the plan. On Metal the planned bytes, and no more, are
wired, so that the system does not page weights out between two questions.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from magistral_mlx.backend import backend, mx
from magistral_mlx.memory.plan import Plan

_WIRING_MACOS = 15  # the first that has it


@dataclass(frozen=True)
class Limits:
    """Bytes; wired is None where memory cannot be wired."""

    memory: int
    cache: int
    wired: int | None = None


def limits_for(plan: Plan) -> Limits:
    """The limits of a plan."""
    wired = None
    if backend().name == "metal" and _macos() >= _WIRING_MACOS:
        recommended = int(mx.device_info()["max_recommended_working_set_size"])
        wired = min(plan.peak.total, recommended)
    return Limits(plan.peak.total, plan.buffer_cache, wired)


def set_limits(limits: Limits) -> Limits:
    """Set them, and return those that were in force, to be set again later."""
    before_memory = mx.set_memory_limit(limits.memory)
    before_cache = mx.set_cache_limit(limits.cache)
    before_wired = None if limits.wired is None else mx.set_wired_limit(limits.wired)
    return Limits(before_memory, before_cache, before_wired)


def _macos() -> int:
    version = platform.mac_ver()[0]
    return int(version.split(".")[0]) if version else 0
