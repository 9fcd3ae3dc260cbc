"""`magistral-mlx doctor`: is this machine good enough, in words."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from magistral_mlx.memory.machine import Machine
    from magistral_mlx.memory.plan import Plan

Verdict = Literal["good", "warning", "bad"]
_MARKS: dict[Verdict, str] = {"good": "✓", "warning": "!", "bad": "✗"}
_CONVERSION_DISK = 20 * 10**9  # what converting from the hub takes at most
_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and whether it is good enough."""

    what: str
    verdict: Verdict
    words: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> int:
    """Look at chip, memory, system, Python, MLX, disk and models."""
    from magistral_mlx.memory.machine import this_machine

    machine = this_machine()
    plan = _plan(machine)
    findings = [
        _system(),
        _python(),
        _mlx(),
        _memory(machine, plan),
        _limits(plan),
        *_gpu_limit(machine, plan),
        _free_memory(machine),
        _disk(),
        _models(),
    ]
    bad = any(finding.verdict == "bad" for finding in findings)
    if as_json:
        click.echo(json.dumps({"good": not bad, "findings": [asdict(f) for f in findings]}))
    else:
        for finding in findings:
            click.echo(f"{_MARKS[finding.verdict]} {finding.what}: {finding.words}")
        click.echo("\nThis machine is " + ("not good enough yet." if bad else "good to go."))
    return 1 if bad else 0


def _system() -> Finding:
    macos = platform.mac_ver()[0]
    if macos:
        wires = int(macos.split(".")[0]) >= 15
        words = "" if wires else "; from macOS 15 on, weights can be kept from being paged out"
        return Finding("system", "good" if wires else "warning", f"macOS {macos}{words}")
    return Finding(
        "system",
        "warning",
        f"{platform.system()} {platform.release()}, where MLX computes on the "
        "processor: fine for development, slow for the full-size model",
    )


def _python() -> Finding:
    words = f"{platform.python_version()} for {platform.machine()}"
    if platform.system() == "Darwin" and platform.machine() != "arm64":
        return Finding(
            "Python", "bad", f"{words}, for which there is no Metal: install one for arm64"
        )
    return Finding("Python", "good", words)


def _mlx() -> Finding:
    from magistral_mlx.backend import backend

    here = backend()
    versions = f"{importlib.metadata.version('mlx')} on {here.name}"
    slow = here.name == "cpu" and here.dequantize_from_rows is None
    if slow:
        return Finding(
            "MLX",
            "warning",
            f"{versions}, without OpenBLAS: prompts are read 30 times faster with it "
            "(Debian: apt install libopenblas0-pthread)",
        )
    if here.name == "cpu" and platform.system() == "Darwin":
        return Finding(
            "MLX",
            "warning",
            f"{versions}, as it finds no GPU for Metal (a virtual Mac has none): fine for "
            "development, slow for the full-size model",
        )
    return Finding("MLX", "good", f"{versions}, computing in {here.dtype}".replace("mlx.core.", ""))


def _plan(machine: Machine) -> Plan | None:
    """The plan for Magistral Small at 4 bits; None if it does not fit."""
    from magistral_mlx.errors import OutOfMemory
    from magistral_mlx.memory.choose import make_plan
    from magistral_mlx.memory.here import profile
    from magistral_mlx.memory.known import magistral_small

    here = profile()
    try:
        return make_plan(magistral_small(here.float_bytes), machine, here)
    except OutOfMemory:
        return None


def _memory(machine: Machine, plan: Plan | None) -> Finding:
    name = f"{machine.name} ({machine.architecture})" if machine.architecture else machine.name
    has = f"{name} with {_gib(machine.memory)}, {_gib(machine.limit)} for a model"
    if plan is None:
        return Finding(
            "memory",
            "bad",
            f"{has}: too little for Magistral Small at 4 bits with an image; `magistral-mlx plan` "
            "says what would fit. Smaller models run",
        )
    return Finding("memory", "good", f"{has}: Magistral Small at 4 bits runs with {_what(plan)}")


def _what(plan: Plan) -> str:
    return f"{plan.context:,} tokens of context (KV cache {plan.scheme.name})"


def _limits(plan: Plan | None) -> Finding:
    """MLX's limits: those of a plan are set while its model is loaded."""
    from magistral_mlx.memory.limits import limits_for, limits_now

    now = limits_now()
    words = f"now {_gib(now.memory)} of memory and {_gib(now.cache)} of freed buffers"
    if plan is not None:
        then = limits_for([plan])
        words += f"; with Magistral Small {_gib(then.memory)} and {_gib(then.cache)}, "
        words += _wired(then.wired)
    return Finding("MLX's limits", "good", words)


def _wired(limit: int | None) -> str:
    """Describe wired memory, and why it is used or not."""
    if limit is None:
        return "nothing wired"
    return (
        f"{_gib(limit)} wired so that it is not paged out (--no-wire: nothing; serve: only with "
        "--wire, as macOS has panicked with wired memory under load)"
    )


def _gpu_limit(machine: Machine, plan: Plan | None) -> list[Finding]:
    """On a Mac: how much the GPU may use, and how to raise it where that would help."""
    if not machine.is_mac:
        return []
    raised = _plan(replace(machine, limit=max(machine.limit, machine.memory - 4 * _GIB)))
    if raised is None or (plan and _rank(plan) >= _rank(raised)):
        return [Finding("GPU limit", "good", _gib(machine.limit))]
    megabytes = -(-raised.peak.total // (1 << 20))
    return [
        Finding(
            "GPU limit",
            "warning",
            f"{_gib(machine.limit)}; sudo sysctl iogpu.wired_limit_mb={megabytes} raises it until "
            f"the next restart, and Magistral Small at 4 bits runs with {_what(raised)}",
        )
    ]


def _rank(plan: Plan) -> tuple[int, int]:
    """The more context the better, and then the more bits."""
    from magistral_mlx.cache.scheme import SCHEMES

    return plan.context, -SCHEMES.index(plan.scheme.name)


def _free_memory(machine: Machine) -> Finding:
    from magistral_mlx.memory.here import profile
    from magistral_mlx.memory.known import magistral_small

    free = machine.available
    if free is None:
        return Finding("free memory", "good", "not known here")
    needed = magistral_small(profile().float_bytes).weights.decoder
    if free < needed:
        return Finding(
            "free memory",
            "warning",
            f"{_gib(free)} now, and the weights alone take {_gib(needed)}: close other programs "
            "before loading the full-size model",
        )
    return Finding("free memory", "good", f"{_gib(free)} now")


def _disk() -> Finding:
    from magistral_mlx.paths import conversions_dir

    place = conversions_dir()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < _CONVERSION_DISK:
        return Finding(
            "disk",
            "warning",
            f"{free / 1e9:.0f} GB free at {place}; converting from the hub takes 20 GB",
        )
    return Finding("disk", "good", f"{free / 1e9:.0f} GB free at {place}")


def _models() -> Finding:
    from magistral_mlx.errors import ModelNotFound
    from magistral_mlx.library import default_model, find_models

    found = find_models()
    damaged = [model.name for model in found if not model.complete]
    note = f", {', '.join(damaged)} damaged or incomplete" if damaged else ""
    try:
        words = f"{len(found) - len(damaged)} found{note}; generate takes {default_model()}"
        return Finding("models", "good", words)
    except ModelNotFound as error:
        return Finding("models", "warning", str(error))


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
