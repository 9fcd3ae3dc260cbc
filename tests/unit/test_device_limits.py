"""MLX's limits on a Mac: freed buffers that it keeps, and memory that is wired on request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.backend import mx
from magistral_mlx.cli import generate as generate_command
from magistral_mlx.cli.serve import serve
from magistral_mlx.memory import limits
from magistral_mlx.memory.chips import GIB
from magistral_mlx.memory.choose import make_plan
from magistral_mlx.memory.known import magistral_small
from magistral_mlx.memory.machine import named_machine
from magistral_mlx.memory.peak import GPU
from magistral_mlx.memory.plan import Plan, PlanRequest
from magistral_mlx.server import launcher
from magistral_mlx.server.settings import Settings
from tests.metal import use_metal

MAC = named_machine("64GB macOS 26")


def plan(**wishes: Any) -> Plan:
    return make_plan(magistral_small(), MAC, GPU, PlanRequest(**wishes))


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is wired on a Mac with macOS 15, from the first limit to the last."""
    use_metal(monkeypatch)
    monkeypatch.setattr(limits, "_macos", lambda: 15)
    info = {"max_recommended_working_set_size": MAC.limit}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "set_memory_limit", lambda limit: 0)
    monkeypatch.setattr(mx, "set_cache_limit", lambda limit: 0)
    set_to = [0]

    def set_wired_limit(limit: int) -> int:
        set_to.append(limit)
        return set_to[-2]

    monkeypatch.setattr(mx, "set_wired_limit", set_wired_limit)
    return set_to


def test_freed_buffers_of_a_layer_are_kept_for_the_next_one(wired: list[int]) -> None:
    """Gate, up and their product of 2,048 tokens, in bfloat16; the memory limit bounds the sum."""
    here = plan(context=8192, images=0)
    found = limits.limits_for([here])
    text = here.model.config.text
    assert here.chunk == 2048
    assert found.cache >= 3 * here.chunk * text.intermediate_size * 2
    assert found.memory == here.total
    assert found.cache <= here.peak.workspace + (256 << 20)
    two = limits.limits_for([here, here])
    assert (two.cache, two.memory) == (2 * found.cache, 2 * found.memory)


def test_the_planned_bytes_are_wired_while_a_model_is_loaded(wired: list[int]) -> None:
    process, here = limits._Process(), plan(context=8192)
    process.hold(here)
    assert wired[-1] == here.total
    process.release(here)
    assert wired[-1] == 0


def test_nothing_is_wired_for_a_plan_that_does_not_ask(wired: list[int]) -> None:
    process = limits._Process()
    loose, tight = plan(context=8192, wire=False), plan(context=4096, memory_limit=18 * GIB)
    process.hold(loose)
    assert set(wired) == {0}
    process.hold(tight)
    assert wired[-1] == tight.total
    process.release(tight)
    assert wired[-1] == 0
    process.release(loose)
    assert wired[-1] == 0


def test_no_more_is_wired_than_metal_recommends(wired: list[int]) -> None:
    two = [plan(context=8192), replace(plan(context=8192), context=8191)]
    assert sum(one.total for one in two) > MAC.limit * 0.8
    assert limits.limits_for([*two, *two]).wired == MAC.limit


@pytest.mark.parametrize(
    ("options", "wire"), [((), False), (("--wire",), True), (("--no-wire",), False)], ids=str
)
def test_serve_wires_only_where_it_is_asked(
    options: tuple[str, ...], wire: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(launcher, "serve", lambda settings, **_: seen.append(settings))
    CliRunner().invoke(serve, ["demo", *options], standalone_mode=False)
    assert [settings.load.wire for settings in seen] == [wire]
    assert not Settings().load.wire


@pytest.mark.parametrize(
    ("options", "wire"), [((), True), (("--wire",), True), (("--no-wire",), False)], ids=str
)
def test_generate_wires_unless_it_is_asked_not_to(
    options: tuple[str, ...], wire: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def load(name: str | None, options: LoadOptions) -> None:
        seen.append(options)
        raise KeyboardInterrupt

    monkeypatch.setattr(generate_command, "open_model", load)
    arguments = ["Hello", "--model", "demo", *options]
    CliRunner().invoke(generate_command.generate, arguments, standalone_mode=False)
    assert [options.wire for options in seen] == [wire]
    assert LoadOptions().wire
