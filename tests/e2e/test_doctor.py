"""`magistral-mlx doctor`, on this machine and on Macs that are made up."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from magistral_mlx.backend import backend, mx
from magistral_mlx.cli.doctor import doctor
from magistral_mlx.memory import here, limits, machine
from magistral_mlx.memory.machine import GIB, named_machine
from magistral_mlx.memory.peak import GPU
from tests.e2e.test_generate import run

EMPTY = {"HF_HOME": "/nonexistent", "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent"}
Doctor = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """doctor on a Mac of that name -> verdict and words by what was looked at."""

    def ask(name: str, free: float = 100, macos: int = 26) -> dict[str, tuple[str, str]]:
        mac = replace(named_machine(name), available=int(free * GIB), architecture="applegpu_x")
        metal = replace(backend(), name="metal")
        monkeypatch.setattr(machine, "this_machine", lambda: mac)
        monkeypatch.setattr(here, "profile", lambda: GPU)
        monkeypatch.setattr(limits, "backend", lambda: metal)
        monkeypatch.setattr(limits, "_macos", lambda: macos)
        info = {"max_recommended_working_set_size": mac.limit}
        monkeypatch.setattr(mx, "device_info", lambda: info)
        monkeypatch.setattr(mx, "set_wired_limit", lambda limit: 0)
        # The names of the help option, which click keeps from the first call, as `main` has them.
        options = {"standalone_mode": False, "help_option_names": ["-h", "--help"]}
        told = json.loads(CliRunner().invoke(doctor, ["--json"], **options).stdout)
        found = {finding["what"]: finding for finding in told["findings"]}
        assert told["good"] == all(finding["verdict"] != "bad" for finding in found.values())
        return {what: (one["verdict"], one["words"]) for what, one in found.items()}

    return ask


def test_it_says_in_words_whether_this_machine_will_do() -> None:
    done = run("doctor", **EMPTY)
    told = json.loads(run("doctor", "--json", **EMPTY).stdout)
    assert told["good"] == (done.returncode == 0) == ("good to go" in done.stdout)
    lines = done.stdout.splitlines()
    for finding, line in zip(told["findings"], lines, strict=False):
        mark = {"good": "✓", "warning": "!", "bad": "✗"}[finding["verdict"]]
        assert line.startswith(f"{mark} {finding['what']}: ")
    words = {finding["what"]: finding["words"] for finding in told["findings"]}
    assert "computing in float32" in words["MLX"]
    assert "no model on this machine" in words["models"]
    assert "GB free at /" in words["disk"]


@pytest.mark.parametrize(
    ("backend_name", "free", "words"),
    [
        ("metal", 35, None),
        ("metal", 25, "25 GB free at {}; converting from the hub takes 30 GB, or 20 GB with "
         "--calibration none"),
        ("cpu", 25, None),
        ("cpu", 15, "15 GB free at {}; converting from the hub takes 20 GB"),
    ],
)  # fmt: skip
def test_the_disk_that_converting_takes_is_told_as_it_calibrates(
    on_a_mac: Doctor, backend_name: str, free: int, words: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path))
    here = replace(backend(), name=backend_name)
    monkeypatch.setattr("magistral_mlx.backend.backend", lambda: here)
    room = shutil.disk_usage(tmp_path)._replace(free=free * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    verdict, told = on_a_mac("64GB")["disk"]
    assert verdict == ("warning" if words else "good")
    assert told == (words or f"{free} GB free at {{}}").format(tmp_path)


def test_a_mac_that_holds_all_is_good(on_a_mac: Doctor) -> None:
    found = on_a_mac("M4 Max 64GB")
    assert found["memory"] == (
        "good",
        "Apple M4 Max, 64 GB (applegpu_x) with 64.0 GiB, 48.0 GiB for a model: Magistral Small at "
        "4 bits runs with 40,960 tokens of context (KV cache full)",
    )
    assert found["GPU limit"] == ("good", "48.0 GiB")
    assert found["free memory"] == ("good", "100.0 GiB now")


def test_mlx_s_limits_are_told_as_they_are_and_as_they_would_be(on_a_mac: Doctor) -> None:
    memory, cache = mx.set_memory_limit(3 * GIB), mx.set_cache_limit(GIB)
    try:
        found, old = on_a_mac("32GB"), on_a_mac("32GB", macos=14)
        assert (mx.set_memory_limit(memory), mx.set_cache_limit(cache)) == (3 * GIB, GIB)
    finally:
        mx.set_memory_limit(memory)
        mx.set_cache_limit(cache)
    words = found["MLX's limits"][1]
    assert words.startswith("now 3.0 GiB of memory and 1.0 GiB of freed buffers; ")
    with_model = re.search(
        r"Magistral Small ([\d.]+) GiB and [01].\d GiB, ([\d.]+) GiB wired so that", words
    )
    assert with_model is not None
    assert 19 < float(with_model[1]) == float(with_model[2]) < 21.4
    assert "serve: only with --wire" in words
    assert old["MLX's limits"][1].endswith(" GiB, nothing wired")


def test_a_higher_gpu_limit_is_advised_where_it_helps(on_a_mac: Doctor) -> None:
    """A 24 GB Mac holds the default context at 4 bits, and in full precision with a raised one."""
    verdict, words = on_a_mac("24GB")["GPU limit"]
    assert verdict == "warning"
    assert "16.0 GiB; sudo sysctl iogpu.wired_limit_mb=" in words
    assert words.endswith("runs with 40,960 tokens of context (KV cache full)")
    small = on_a_mac("18GB")
    assert small["memory"][0] == "bad"
    assert "KV cache 4/4" in small["GPU limit"][1] and small["GPU limit"][0] == "warning"


def test_what_does_not_fit_and_what_is_short_is_said(on_a_mac: Doctor) -> None:
    found = on_a_mac("16GB", free=5)
    assert found["memory"][0] == "bad"
    assert "too little for Magistral Small at 4 bits" in found["memory"][1]
    assert found["GPU limit"] == ("good", "10.7 GiB")
    assert found["free memory"] == (
        "warning",
        "5.0 GiB now, and the weights alone take 12.4 GiB: close other programs before loading "
        "the full-size model",
    )
