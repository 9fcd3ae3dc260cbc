"""`magistral-mlx doctor`: is this machine good enough, in words."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.check.finding import MARKS, Finding
from magistral_mlx.cli.doctor_check import run_checks, show_checks
from magistral_mlx.cli.doctor_machines import check_machines
from magistral_mlx.cli.loading import chosen_model, model_argument
from magistral_mlx.cli.params import command, option

if TYPE_CHECKING:
    from magistral_mlx.memory.machine import Machine
    from magistral_mlx.memory.plan import Plan

# What converting from the hub takes at most, in bytes: calibration goes layer by layer, and keeps
# the files of a layer that lies in two, and that of the vision tower.
_PLAIN_DISK, _CALIBRATED_DISK = 20 * 10**9, 30 * 10**9
_GIB = 1 << 30


@command()
@model_argument
@option("--check", "checking", is_flag=True, help="Compute, compare and measure.")
@option(
    "--machines",
    metavar="NAME,NAME",
    help="Look at several machines and their links, this one first, as in mac1.local,mac2.local.",
)
@option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(checking: bool, as_json: bool, machines: str | None, **options: Any) -> int:
    """Look at chip, memory, system, Python, MLX, disk and models.

    With --check, kernels are compared with the CPU at the shapes of MODEL (a folder, a name or
    "demo"; by default the model on this machine, else Magistral Small at 4 bits), plans with
    measured memory, and the demo model's answers with those expected. Speeds are kept for plans and
    for speculation. For a bug report, add --json.
    """
    from magistral_mlx.errors import InvalidOption
    from magistral_mlx.memory.machine import this_machine

    model = chosen_model(options)
    if machines is not None:
        if checking or model is not None:
            raise InvalidOption("doctor --machines looks at links; leave --check and MODEL out.")
        return check_machines(machines, as_json=as_json)
    if model is not None and not checking:
        raise InvalidOption(f"doctor looks at {model} only with --check: add it.")
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
    checks = run_checks(model) if checking else None
    bad = any(one.verdict == "bad" for one in (*findings, *(checks.findings if checks else ())))
    if as_json:
        told = {"good": not bad, "findings": [asdict(finding) for finding in findings]}
        if checks:
            told |= {"model": checks.model, "checks": [asdict(one) for one in checks.findings]}
            told |= {"machine": checks.machine, "versions": checks.versions}
        click.echo(json.dumps(told))
    else:
        for finding in findings:
            click.echo(f"{MARKS[finding.verdict]} {finding.what}: {finding.words}")
        if checks:
            show_checks(checks)
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
    from magistral_mlx.backend import backend
    from magistral_mlx.paths import conversions_dir

    place = conversions_dir()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    calibrates = backend().name != "cpu"  # by default
    if free < (_CALIBRATED_DISK if calibrates else _PLAIN_DISK):
        takes = "30 GB, or 20 GB with --calibration none" if calibrates else "20 GB"
        return Finding(
            "disk",
            "warning",
            f"{free / 1e9:.0f} GB free at {place}; converting from the hub takes {takes}",
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
