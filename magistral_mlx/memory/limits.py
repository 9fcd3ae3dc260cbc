"""MLX's process-wide limits: set while models are loaded, and restored afterwards.

The memory limit does not make allocations fail: above it MLX waits for running work before it
allocates more, which keeps temporary arrays within the plan.

On Metal exactly the planned bytes of plans that ask for it are wired, so that the system does not
page weights out between two requests. A server does not ask for it by default: wired memory whose
buffers change all the time, as under many requests, has made macOS panic (MLX issue 3186).
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from magistral_mlx.backend import backend, keep_dispatches_short, mx
from magistral_mlx.memory.plan import Plan

_WIRING_MACOS = 15  # first version that supports wiring


@dataclass(frozen=True)
class DeviceLimits:
    """MLX's limits in bytes. wired: None if memory cannot be wired."""

    memory: int
    cache: int
    wired: int | None = None


class _Process:
    """The limits of this process: the sum over the active plans, or the original ones."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while a plan is made and activated
        self._held: list[Plan] = []
        self._before: DeviceLimits | None = None
        self._machine = 0  # bytes that all plans may take together

    @property
    def planned(self) -> int:
        """Bytes that the active plans may take together."""
        return sum(plan.total for plan in self._held)

    def limit(self, plan: Plan) -> int:
        """Bytes that an active plan's model may take: its limit, or what other plans leave."""
        return min(plan.limit, self._machine - self._others(plan))

    def allowed(self, plan: Plan) -> int:
        """Bytes that the process may use while the plan's model runs, other plans included."""
        return self.limit(plan) + self._others(plan)

    def _others(self, plan: Plan) -> int:
        return self.planned - plan.total

    def hold(self, plan: Plan) -> None:
        """Activate a plan: raise the limits by its bytes."""
        with self.lock:
            if not self._held:
                self._machine = plan.machine.limit
            self._held.append(plan)
            keep_dispatches_short(plan.machine.measured.attention)
            before = _set(limits_for(self._held))
            self._before = self._before or before

    def release(self, plan: Plan) -> None:
        """Deactivate a plan: lower the limits by its bytes; the last one restores the original
        limits."""
        with self.lock:
            if plan not in self._held:
                return
            self._held.remove(plan)
            if self._held:
                _set(limits_for(self._held))
            elif self._before:
                _set(self._before)
                self._before = None


PROCESS = _Process()


def limits_for(plans: Sequence[Plan]) -> DeviceLimits:
    """Compute MLX's limits while these plans are active."""
    planned = sum(plan.total for plan in plans)
    # Freed buffers of temporary arrays are kept for the next layer, which needs the same ones: with
    # a lower limit Metal would release and wire buffers of 100 MB and more in every layer. What is
    # cached is not in use, and above the memory limit MLX releases cached buffers first
    # (`MetalAllocator::malloc` in mlx/backend/metal/allocator.cpp, line 135 of commit 846d176).
    cache = sum(plan.buffer_cache + plan.peak.workspace for plan in plans)
    wired = None
    if backend().name == "metal" and _macos() >= _WIRING_MACOS:
        recommended = int(mx.device_info()["max_recommended_working_set_size"])
        wired = min(sum(plan.total for plan in plans if plan.wire), recommended)
    return DeviceLimits(planned, cache, wired)


def limits_now() -> DeviceLimits:
    """Return the present limits, except for wired memory, which MLX does not report."""
    now = _set(DeviceLimits(1 << 40, 1 << 40))  # MLX reports limits only when they are set
    _set(now)
    return now


def _set(limits: DeviceLimits) -> DeviceLimits:
    """Set the limits and return the previous ones."""
    before_memory = mx.set_memory_limit(limits.memory)
    before_cache = mx.set_cache_limit(limits.cache)
    before_wired = None if limits.wired is None else mx.set_wired_limit(limits.wired)
    return DeviceLimits(before_memory, before_cache, before_wired)


def _macos() -> int:
    version = platform.mac_ver()[0]
    return int(version.split(".")[0]) if version else 0
