"""What a machine is said to offer, and the warning where less than that is free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from magistral_mlx.memory import machine as module
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.known import magistral_small
from magistral_mlx.memory.machine import GIB, named_machine, this_machine
from magistral_mlx.memory.peak import GPU


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(module, "_CGROUP_LIMITS", (limit, tmp_path / "missing"))
    limit.write_text("max\n")
    whole = this_machine()
    limit.write_text(f"{2 * GIB}\n")
    inside = this_machine()
    assert whole.memory > 2 * GIB
    assert inside.memory == 2 * GIB
    assert inside.limit < 2 * GIB
    assert inside.available is not None
    assert inside.available <= 2 * GIB


def test_another_mac_may_be_named_with_its_chip() -> None:
    mac = named_machine("M3 Max 64 GB")
    assert mac.chip is not None
    assert mac.chip.name == "Apple M3 Max"
    assert mac.limit == 48 * GIB


def test_a_machine_short_of_free_memory_is_warned_about_with_figures() -> None:
    plan = make_plan(magistral_small(), named_machine("32GB"), GPU)
    assert plan.warning is None  # nothing is known of what is free there
    full = replace(plan, machine=replace(plan.machine, available=30 * GIB))
    short = replace(plan, machine=replace(plan.machine, available=8 * GIB))
    assert full.warning is None
    assert short.warning is not None
    assert "8.0 GiB of memory are free now, and a full context needs 2" in short.warning
