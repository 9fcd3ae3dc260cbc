"""`magistral-mlx bench`: how fast a model runs here, beside its peers and the physical limit."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.cli.loading import chosen_model, loading_options, model_argument, warn_if_short
from magistral_mlx.cli.machine_options import machine_options
from magistral_mlx.cli.machines import machines_of, run_on_machines
from magistral_mlx.cli.params import INTEGER, command, given, option
from magistral_mlx.cli.terminal import say
from magistral_mlx.distributed.place import CHOSEN, place
from magistral_mlx.errors import MagistralError
from magistral_mlx.option_spec import Integer

if TYPE_CHECKING:
    from magistral_mlx.bench.compare import Comparison, Workload
    from magistral_mlx.bench.process import Program
    from magistral_mlx.bench.record import Limit
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.memory.machine import Machine

_TOGETHER = 0.6  # of what the machine offers, for the weights of all runtimes at once


@command()
@model_argument
@option(
    "-c",
    "--context",
    "contexts",
    metavar="TOKENS[,TOKENS]",
    help="Lengths of prompts to measure at.  [default: 512,4096]",
)
@option(
    "-n",
    "--tokens",
    type=INTEGER(Integer(2)),
    default=64,
    metavar="N",
    help="Tokens to generate.  [default: 64]",
)
@option(
    "--against",
    metavar="NAME[,NAME]",
    default="",
    help="mlx-lm, mlx-vlm, NAME=PYTHON for one in another environment, or the address of a server "
    "with OpenAI's API, as in http://localhost:1234/v1, or ADDRESS=MODEL.",
)
@option(
    "--api-key-env",
    metavar="VARIABLE",
    default="",
    help="Environment variable that holds the API key of the servers.",
)
@option(
    "--rounds",
    type=INTEGER(Integer(1)),
    default=9,
    metavar="N",
    help="Rounds at most.  [default: 9]",
)
@option(
    "--parallel",
    metavar="N[,N]",
    default="",
    help="Requests at once to measure as well, of this runtime and of servers, as in 2,8.",
)
@option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@loading_options("kv", "dtype", "adapter")
@machine_options
def bench(as_json: bool, **options: Any) -> int:
    """Measure prefill, decode, time to first token and peak memory of MODEL.

    The tokens are random, so no answer is shown. Rounds repeat until their spread is small. The
    cost of a pass over several tokens is stored for speculation.
    """
    options["model"] = chosen_model(options)
    options |= {"kv": None, "dtype": None, "adapter": None} | given(options, LoadOptions)
    if options["adapter"] and options["against"]:
        raise click.UsageError("--adapter measures this runtime alone; leave --against out.")
    if (machines := machines_of(options)) is not None:
        _check_split(options)
        loading = LoadOptions(kv=options["kv"], dtype=options["dtype"], images=0)
        return run_on_machines(machines, [options["model"]], loading, options["split"])
    here = place()
    if here is not None:
        _check_split(options)
        os.environ[CHOSEN] = options["split"] or os.environ.get(CHOSEN, "auto")
    from magistral_mlx.bench.conditions import read_conditions, swapping
    from magistral_mlx.bench.record import limit_of
    from magistral_mlx.cli import bench_report as report
    from magistral_mlx.cli.bench_workload import workload_of

    name, checkpoint, machine, scheme = _fitting(options)
    work = workload_of(checkpoint, options)
    programs, missing = _programs(scheme, options)
    before = read_conditions()
    # The other ranks wait for ours to connect, and not for long.
    limit = limit_of(machine) if here is None else None
    result = _measure(programs, work, checkpoint, machine)
    limit = limit or limit_of(machine)
    result.disturbances |= {*before.disturbances, *swapping(before, read_conditions())}
    result.left_out |= missing
    facts = _facts(name, checkpoint, machine, scheme, limit, work, programs, result)
    facts["machines"] = here.size if here else 1
    if here is None:
        facts["pass_costs"] = _pass_costs(programs[0], work, checkpoint, machine)
    click.echo(json.dumps(facts)) if as_json else report.show(facts)
    return 0


def _check_split(options: dict[str, Any]) -> None:
    """Raises UsageError for what cannot be measured of a model that is split over machines."""
    from magistral_mlx.bench.process import is_address

    against = [part.strip() for part in options["against"].split(",") if part.strip()]
    if not all(map(is_address, against)):
        raise click.UsageError(
            "over several machines --against takes servers; others hold the model on one machine."
        )
    for name in ("adapter", "parallel"):
        if options[name]:
            raise click.UsageError(f"--{name} measures one machine; leave it out.")


def _fitting(options: dict[str, Any]) -> tuple[str, Checkpoint, Machine, str]:
    """The model and the KV scheme that fits -> its name, checkpoint, machine and scheme.

    Raises:
        MagistralError: no such model, or it does not fit.
    """
    from pathlib import Path

    from magistral_mlx.api.adapters import open_adapters
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.cli.bench_workload import contexts_of
    from magistral_mlx.library import locate
    from magistral_mlx.memory.here import plan_here
    from magistral_mlx.memory.machine import this_machine
    from magistral_mlx.memory.plan import PlanRequest

    folder = Path(locate(options["model"]))
    checkpoint = Checkpoint.open(folder)
    name = options["model"] or folder.name
    context = max(contexts_of(checkpoint, options)) + options["tokens"]
    request = PlanRequest(context, options["kv"], images=0)
    if place() is not None:  # planned for all machines when it is loaded
        return name, checkpoint, this_machine(), options["kv"] or "full"
    adapters = open_adapters(LoadOptions(adapter=options["adapter"]), checkpoint.config)
    plan = plan_here(checkpoint, name, request, options["dtype"], adapters=list(adapters.values()))
    warn_if_short(plan)
    return name, checkpoint, plan.machine, plan.scheme.name


def _programs(scheme: str, options: dict[str, Any]) -> tuple[list[Program], dict[str, str]]:
    """Return the runtimes to measure, ours first, and those not installed, with advice.

    Raises:
        MagistralError: no such peer, or a server that does not answer.
    """
    from magistral_mlx.bench.process import is_address, ours, peer, server, version

    programs, missing = [ours(scheme, options["adapter"])], {}
    for wanted in filter(None, (part.strip() for part in options["against"].split(","))):
        if is_address(wanted):
            programs.append(server(wanted, options["api_key_env"]))
            continue
        program = peer(wanted)
        if version(program) is None:
            missing[program.label] = (
                f"it is not installed for {program.command[0]}; give the Python that has it, as "
                f"in --against {program.package}=/path/to/bin/python."
            )
        else:
            programs.append(program)
    return programs, missing


def _measure(
    programs: list[Program], work: Workload, checkpoint: Checkpoint, machine: Machine
) -> Comparison:
    from rich.console import Console

    from magistral_mlx.bench.compare import compare
    from magistral_mlx.bench.together import compare_together, ours_together
    from magistral_mlx.memory.peak import loaded_weights

    here = [program for program in programs if not program.remote]
    weights = loaded_weights(checkpoint, _float_bytes(work))
    held = len(here) * (weights.decoder + weights.vision)
    together = place() is not None or held <= _TOGETHER * machine.limit
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with console.status("measuring") as status:
        result = compare(programs, work, together=together, on_stage=status.update)
        if work.parallel:
            servers = [program for program in programs if program.remote]
            scheduler = ours_together(*programs[0].command[3:])
            compare_together([scheduler, *servers], work, result, status.update)
    return result


def _float_bytes(work: Workload) -> int:
    from magistral_mlx.backend import DTYPES, backend

    return (DTYPES[work.dtype] if work.dtype else backend().dtype).size


def _pass_costs(
    program: Program, work: Workload, checkpoint: Checkpoint, machine: Machine
) -> list[tuple[int, float]] | None:
    """Measure what wider passes cost, and keep it for speculation; None if that would take long."""
    from rich.console import Console

    from magistral_mlx.bench.pass_costs import long_context_fits, measure_pass_costs
    from magistral_mlx.engine.speculate.measured import store
    from magistral_mlx.memory.peak import loaded_weights

    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    try:
        size = _float_bytes(work)
        weights = loaded_weights(checkpoint, size).decoder
        long = long_context_fits(checkpoint.config.text, weights, size, machine.limit)
        with console.status("measuring") as status:
            costs = measure_pass_costs(program, work.folder, work.dtype, status.update, long=long)
        if costs is None:
            return None
        store(machine.name, weights, costs)
    except (MagistralError, OSError) as error:
        say(f"the costs of wider passes are not kept for speculation: {error}")
        return None
    return list(costs.points)


def _facts(
    name: str,
    checkpoint: Checkpoint,
    machine: Machine,
    scheme: str,
    limit: Limit,
    work: Workload,
    programs: list[Program],
    result: Comparison,
) -> dict[str, Any]:
    """Everything that is known afterwards, as JSON types; sizes in bytes."""
    from magistral_mlx.backend import DTYPES
    from magistral_mlx.bench.record import (
        bytes_read_by,
        describe_machine,
        describe_speeds,
        line_to_paste,
        versions,
    )
    from magistral_mlx.cache.scheme import KVScheme

    size = DTYPES[work.dtype].size if work.dtype else 2

    servers = {program.label for program in programs if program.remote}

    def read(label: str, context: int) -> int | None:
        if label in servers:
            return None
        return bytes_read_by(label, checkpoint, context, work.count, KVScheme.parse(scheme), size)

    facts = {
        "model": name,
        "kv": scheme,
        "dtype": work.dtype,
        "machine": describe_machine(machine),
        "versions": versions(programs),
        "mlx_versions": result.mlx_versions,
        "command": sys.argv,
        "limit": {**asdict(limit), "origin": limit.origin},
        "speeds": describe_speeds(result, limit, read),
        "parallel": [asdict(speed) for speed in result.parallel],
        "took_turns": result.took_turns,
        "equal_tokens": result.equal_tokens,
        "left_out": result.left_out,
        "disturbances": sorted(result.disturbances),
    }
    return facts | {"line": line_to_paste(facts)}
