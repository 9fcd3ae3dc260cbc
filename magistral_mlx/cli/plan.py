"""`magistral-mlx plan`: what fits into memory, before a byte is downloaded or loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.loading import chosen_model, load_options, loading_options, model_argument
from magistral_mlx.cli.machine_options import SECTION, split_option
from magistral_mlx.cli.params import SIZE, command, option

if TYPE_CHECKING:
    from magistral_mlx.api.load_options import LoadOptions
    from magistral_mlx.memory.machine import Machine
    from magistral_mlx.memory.machines import SplitModel
    from magistral_mlx.memory.peak import BackendProfile
    from magistral_mlx.memory.plan import Plan, PlannedModel, PlanRequest


@command()
@model_argument
@loading_options("context", "kv", "images", "memory_limit", "adapter")
@option(
    "--machine",
    metavar="NAME",
    help="Another Mac, as in '32GB', 'M3 Max 64GB' or '24GB macOS 26'.",
)
@option(
    "--weights",
    type=SIZE(),
    metavar="SIZE",
    help="Plan for Magistral converted to this size, as by `convert --target-size`.",
)
@option("--all-machines", is_flag=True, help="Print a table of Macs from 16 to 128 GB.")
@option(
    "--machines",
    metavar="SIZE,SIZE",
    section=SECTION,
    help="Macs that hold the model together, as in '16GB,16GB'.",
)
@split_option
@option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(**options: Any) -> None:
    """Show what of MODEL fits: weights, cache, context. Default: the model that generate takes."""
    model = chosen_model(options)
    from magistral_mlx.cli import plan_report as report
    from magistral_mlx.memory.here import profile
    from magistral_mlx.memory.machine import (
        APPLE_SIZES,
        named_machine,
        this_machine,
    )
    from magistral_mlx.memory.peak import GPU
    from magistral_mlx.memory.plan import PlanRequest

    if sum(map(bool, (options["machine"], options["all_machines"], options["machines"]))) > 1:
        raise click.UsageError("give only one of --machine, --machines and --all-machines.")
    if options["split"] and not options["machines"]:
        raise click.UsageError("--split needs --machines, as in --machines '16GB,16GB'.")
    _check_weights(model, options)
    asked = load_options(options)
    request = PlanRequest(asked.context, asked.kv, asked.images, asked.memory_limit)
    if options["machines"] is not None:
        _plan_split(model, asked, request, options)
        return
    if options["all_machines"]:
        described = _model(model, GPU, asked, options["weights"])
        machines = [named_machine(f"{size}GB") for size in APPLE_SIZES]
        rows = [
            facts_of(described, machine, GPU, _within(request, machine)) for machine in machines
        ]
        click.echo(json.dumps(rows)) if options["as_json"] else report.show_machines(rows)
        return
    if options["machine"]:
        machine, backend_profile = named_machine(options["machine"]), GPU
    else:
        machine, backend_profile = this_machine(), profile()
    facts = facts_of(
        _model(model, backend_profile, asked, options["weights"]), machine, backend_profile, request
    )
    click.echo(json.dumps(facts)) if options["as_json"] else report.show(facts)


def _plan_split(
    name: str | None, asked: LoadOptions, request: PlanRequest, options: dict[str, Any]
) -> None:
    """Show a plan over several Macs."""
    from magistral_mlx.cli.plan_machines import named_machines, show_split, split_facts

    if asked.adapter is not None:
        raise click.UsageError("--machines plans without adapters; leave --adapter out.")
    machines = named_machines(options["machines"])
    facts = split_facts(_split_model(name), machines, request, options["split"] or "auto")
    click.echo(json.dumps(facts)) if options["as_json"] else show_split(facts)


def _within(request: PlanRequest, machine: Machine) -> PlanRequest:
    """The request on a machine that may have less memory than its limit."""
    if request.memory_limit is None or request.memory_limit <= machine.limit:
        return request
    return replace(request, memory_limit=None)


def facts_of(
    model: PlannedModel, machine: Machine, profile: BackendProfile, request: PlanRequest
) -> dict[str, Any]:
    """Everything that the report shows, as JSON types; bytes are integers."""
    from magistral_mlx.errors import OutOfMemory
    from magistral_mlx.memory.choose import make_plan

    facts = _machine(model, machine, profile, request)
    try:
        best = make_plan(model, machine, profile, request)
    except OutOfMemory as error:
        caches = _caches(model, profile, request.context, request.kv)
        return facts | caches | {"fits": False, "why": str(error)}
    caches = _caches(model, profile, best.context, request.kv)
    return facts | caches | _chosen(best, _why(best, profile, request))


def facts_of_plan(plan: Plan, why: str) -> dict[str, Any]:
    """The same of a plan that is being followed."""
    from magistral_mlx.memory.plan import PlanRequest

    model, profile = plan.model, plan.profile
    kv = plan.scheme.name
    request = PlanRequest(kv=kv, images=plan.images, memory_limit=plan.limit)
    facts = _machine(model, plan.machine, profile, request)
    return facts | _caches(model, profile, plan.context, kv) | _chosen(plan, why)


def _machine(
    model: PlannedModel, machine: Machine, profile: BackendProfile, request: PlanRequest
) -> dict[str, Any]:
    """The machine, and the longest context there with each cache."""
    from magistral_mlx.cache.scheme import schemes_with
    from magistral_mlx.memory.plan import longest_context

    return {
        "model": model.source,
        "machine": {
            "name": machine.name,
            "memory": machine.memory,
            "limit": request.memory_limit or machine.limit,
            "available": machine.available,
        },
        "longest_context": {
            scheme: longest_context(model, machine, profile, request, scheme, model.longest_context)
            for scheme in schemes_with(request.kv)
        },
    }


def _caches(
    model: PlannedModel, profile: BackendProfile, context: int | None, kv: str | None
) -> dict[str, Any]:
    """Bytes of the KV cache under each scheme, `kv` among them, at the context in question."""
    from magistral_mlx.cache.scheme import KVScheme, schemes_with
    from magistral_mlx.memory.peak import cache_bytes
    from magistral_mlx.memory.plan import DEFAULT_CONTEXT

    context = context or min(DEFAULT_CONTEXT, model.longest_context)
    text = model.config.text
    sizes = {
        scheme: cache_bytes(text, KVScheme.parse(scheme), context, profile.float_bytes)
        for scheme in schemes_with(kv)
    }
    return {"kv_bytes": sizes, "kv_bytes_context": context}


def _chosen(best: Plan, why: str) -> dict[str, Any]:
    """Describe the plan, and the times that follow from it."""
    from magistral_mlx.memory import estimate

    peak = best.peak
    return {
        "fits": True,
        "context": best.context,
        "kv": best.scheme.name,
        "prefill_chunk": best.chunk,
        "images": best.images,
        "why": why,
        "bytes": {
            "weights": peak.weights - best.model.adapters,
            "adapters": best.model.adapters,
            "vision": peak.vision,
            "cache": peak.cache,
            "workspace": peak.workspace,
            "total": peak.total,
            "headroom": best.headroom,
            "kept": best.kept,
        },
        "computed": {
            "prefill_seconds": estimate.prefill_seconds(best),
            "decode_tokens_per_second": estimate.decode_tokens_per_second(best, 0),
            "decode_tokens_per_second_full": estimate.decode_tokens_per_second(best, best.context),
            "measured": best.machine.measured.bandwidth is not None,
            "missing": estimate.why_not_computed(best.machine),
        },
    }


def _why(best: Plan, profile: BackendProfile, request: PlanRequest) -> str:
    """Return the reason for the plan's choice, in a sentence."""
    from magistral_mlx.cache.scheme import SCHEMES
    from magistral_mlx.memory.plan import fit, gib

    if request.kv:
        return f"a {request.kv} cache was asked for"
    if best.shortened:
        return "the longest context that the smallest cache allows here"
    finer = SCHEMES[: SCHEMES.index(best.scheme.name)]
    if not finer:
        return "all of it fits in full precision"
    missing = -fit(best.model, best.machine, profile, request, finer[-1], best.context).headroom
    return f"the highest precision that fits: {finer[-1]} needs {gib(missing)} more"


def _check_weights(model: str | None, options: dict[str, Any]) -> None:
    """Check what goes with --weights, which is for no model that exists."""
    if options["weights"] is None:
        return
    others = (
        ("MODEL", model),
        ("--machines", options["machines"]),
        ("--adapter", options["adapter"]),
    )
    for name, given in others:
        if given is not None:
            raise click.UsageError(
                f"--weights plans for a conversion that is not made yet; leave {name} out."
            )


def _model(
    name: str | None, profile: BackendProfile, asked: LoadOptions, nbytes: int | None = None
) -> PlannedModel:
    """A model on this machine, on the hub (its headers alone are fetched), or the default one.

    Args:
        nbytes: plan for Magistral with so many bytes of weights instead.
    """
    from magistral_convert.source import read_headers
    from magistral_mlx.api.adapters import open_adapters
    from magistral_mlx.errors import ModelNotFound
    from magistral_mlx.library import default_model
    from magistral_mlx.memory.here import describe
    from magistral_mlx.memory.known import magistral_small, sized_magistral_small

    if nbytes is not None:
        return sized_magistral_small(nbytes, profile.float_bytes)
    if name is None:
        try:
            name = str(default_model())
        except ModelNotFound:
            if asked.adapter is not None:
                raise
            return magistral_small(profile.float_bytes)
    headers = read_headers(name)
    adapters = open_adapters(asked, headers.config).values()
    return describe(headers, name, profile.float_bytes, adapters=adapters)


def _split_model(name: str | None) -> SplitModel:
    """The same for Macs that hold it together."""
    from magistral_convert.source import read_headers
    from magistral_mlx.errors import ModelNotFound
    from magistral_mlx.library import default_model
    from magistral_mlx.memory.known import MAGISTRAL_SMALL, NAME, quantized_sizes
    from magistral_mlx.memory.machines import SplitModel, split_model
    from magistral_mlx.memory.peak import GPU
    from magistral_mlx.quantization import Quantization

    if name is None:
        try:
            name = str(default_model())
        except ModelNotFound:
            sizes = quantized_sizes(MAGISTRAL_SMALL, Quantization(), GPU.float_bytes)
            return SplitModel(NAME, MAGISTRAL_SMALL, sizes)
    return split_model(read_headers(name), name, GPU.float_bytes)
