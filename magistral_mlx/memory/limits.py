"""MLX's own limits, which are one per process: set while models are loaded, put back afterwards.

The memory limit refuses nothing: above it MLX waits for running work before it allocates more,
which is what keeps work in flight within the plan. On Metal the planned bytes, and no more, are
wired, so that the system does not page weights out between two questions.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from magistral_mlx.backend import backend, mx
from magistral_mlx.memory.plan import Plan

_WIRING_MACOS = 15  # the first that has it


@dataclass(frozen=True)
class DeviceLimits:
    """Bytes; wired is None where memory cannot be wired."""

    memory: int
    cache: int
    wired: int | None = None


class _Process:
    """The limits of this process: the sum over the plans that are held, or what was before."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held while a plan is made and taken into force
        self._held: list[Plan] = []
        self._before: DeviceLimits | None = None
        self._machine = 0  # what all of them may take

    @property
    def planned(self) -> int:
        """Bytes that the plans in force may take together."""
        return sum(plan.total for plan in self._held)

    def limit(self, plan: Plan) -> int:
        """Bytes for the model of a plan in force: its limit, or what the other plans leave."""
        return min(plan.limit, self._machine - self._others(plan))

    def allowed(self, plan: Plan) -> int:
        """Bytes that may be in use while its model runs: its own, and those of other plans."""
        return self.limit(plan) + self._others(plan)

    def _others(self, plan: Plan) -> int:
        return self.planned - plan.total

    def hold(self, plan: Plan) -> None:
        """Raise the limits by what a plan needs, for as long as its model is loaded."""
        with self.lock:
            if not self._held:
                self._machine = plan.machine.limit
            self._held.append(plan)
            before = _set(limits_for(self._held))
            self._before = self._before or before

    def release(self, plan: Plan) -> None:
        """Take a plan's share away again; with the last one the first state comes back."""
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
    """MLX's limits while these plans are in force."""
    planned = sum(plan.total for plan in plans)
    cache = sum(plan.buffer_cache for plan in plans)
    wired = None
    if backend().name == "metal" and _macos() >= _WIRING_MACOS:
        recommended = int(mx.device_info()["max_recommended_working_set_size"])
        wired = min(planned, recommended)
    return DeviceLimits(planned, cache, wired)


def limits_now() -> DeviceLimits:
    """Those that are in force, but for what is wired, which cannot be asked for."""
    now = _set(DeviceLimits(1 << 40, 1 << 40))  # MLX tells them when they are set
    _set(now)
    return now


def _set(limits: DeviceLimits) -> DeviceLimits:
    """Set them, and return those that were in force."""
    before_memory = mx.set_memory_limit(limits.memory)
    before_cache = mx.set_cache_limit(limits.cache)
    before_wired = None if limits.wired is None else mx.set_wired_limit(limits.wired)
    return DeviceLimits(before_memory, before_cache, before_wired)


def _macos() -> int:
    version = platform.mac_ver()[0]
    return int(version.split(".")[0]) if version else 0
