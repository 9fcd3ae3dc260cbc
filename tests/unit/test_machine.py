"""What a machine is said to offer, and the warning where less than that is free."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from magistral_mlx import backend as module_backend
from magistral_mlx.backend import mx
from magistral_mlx.memory import machine as module
from magistral_mlx.memory.cgroup import CgroupLimit, memory_groups
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.known import magistral_small
from magistral_mlx.memory.machine import GIB, named_machine, this_machine
from magistral_mlx.memory.peak import GPU


def system(root: Path, groups: str, mounts: str, **files: str | int) -> Path:
    """A /proc and a /sys; `files` by their path below /sys/fs/cgroup, "__" for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


V2 = "35 31 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1 = "35 31 0:32 {} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


def test_the_limits_of_all_groups_above_the_process_count(tmp_path: Path) -> None:
    files: dict[str, str | int] = {
        "user.slice__app.scope__memory.max": "max",
        "user.slice__memory.max": 4 * GIB,
        "user.slice__memory.current": 3 * GIB,
        "user.slice__memory.stat": f"anon 5\ninactive_file {GIB}",
        "memory.max": 8 * GIB,
        "memory.current": 5 * GIB,
    }
    root = system(tmp_path, "0::/user.slice/app.scope\n", V2, **files)
    assert memory_groups(root) == [CgroupLimit(4 * GIB, 2 * GIB), CgroupLimit(8 * GIB, 5 * GIB)]


@pytest.mark.parametrize(
    ("path", "mounted", "folder"),
    [
        ("/docker/abc", "/", "memory__docker__abc"),  # the tree of the whole machine is mounted
        ("/docker/abc", "/docker/abc", "memory"),  # the container's own part alone is
        ("/../../other", "/", "memory"),  # a part that has a name of its own
    ],
)
def test_a_container_under_version_1_is_found_wherever_it_is_mounted(
    tmp_path: Path, path: str, mounted: str, folder: str
) -> None:
    files: dict[str, str | int] = {
        f"{folder}__memory.limit_in_bytes": 2 * GIB,
        f"{folder}__memory.usage_in_bytes": GIB,
        f"{folder}__memory.stat": f"total_inactive_file {GIB // 2}",
    }
    groups = f"5:cpu:/elsewhere\n4:memory:{path}\n0::/\n"
    root = system(tmp_path, groups, V1.format(mounted), **files)
    assert memory_groups(root) == [CgroupLimit(2 * GIB, GIB // 2)]


def test_a_system_without_groups_has_none(tmp_path: Path) -> None:
    assert memory_groups(tmp_path) == []


def test_a_container_s_limit_and_what_it_has_used_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_groups", list)
    whole = this_machine()
    monkeypatch.setattr(module, "memory_groups", lambda: [CgroupLimit(2 * GIB, GIB // 2)])
    inside = this_machine()
    assert whole.memory > 2 * GIB
    assert inside.memory == 2 * GIB
    assert inside.limit < 2 * GIB
    assert inside.available == 3 * GIB // 2


def test_metal_tells_the_working_set_and_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {
        "device_name": "Apple M4 Pro",
        "architecture": "applegpu_g16s",
        "memory_size": 48 * GIB,
        "max_recommended_working_set_size": 40 * GIB,
    }
    on_metal = replace(module_backend.backend(), name="metal")
    monkeypatch.setattr(module_backend, "backend", lambda: on_metal)
    monkeypatch.setattr(mx, "device_info", lambda: told)
    mac = this_machine()
    assert (mac.name, mac.architecture) == ("Apple M4 Pro", "applegpu_g16s")
    assert (mac.memory, mac.limit) == (48 * GIB, 40 * GIB)
    assert mac.chip is not None and mac.is_mac


@pytest.mark.parametrize(
    ("name", "share"),
    [("24GB", 2 / 3), ("24 GB, macOS 26.1", 0.74), ("M4 24GB", 2 / 3), ("M5 24GB", 0.74)],
)
def test_a_mac_whose_system_is_known_to_give_more_is_planned_with_more(
    name: str, share: float
) -> None:
    mac = named_machine(name)
    assert mac.limit == pytest.approx(share * 24 * GIB)
    assert ("macOS 26" in mac.name) == (share > 0.7)


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


def test_the_warning_reaches_whoever_plans(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The API's callers find it in the plan; `bench` prints it before it measures."""
    from magistral_mlx import Magistral
    from magistral_mlx.cli.bench import _fitting
    from magistral_mlx.memory import here

    short = replace(this_machine(), available=GIB >> 10)
    monkeypatch.setattr(here, "this_machine", lambda: short)
    told = []
    with Magistral.load("demo", on_plan=lambda plan: told.append(plan.warning)) as magistral:
        assert magistral.plan.warning is not None
        assert magistral.plan.warning.startswith("1 MiB of memory are free now, and")
    assert told == [magistral.plan.warning]
    options = {"model": "demo", "contexts": None, "tokens": 2, "rounds": 1, "kv": None}
    _fitting(options | {"dtype": None, "adapter": None})
    assert "magistral-mlx: 1 MiB of memory are free now" in capsys.readouterr().err
