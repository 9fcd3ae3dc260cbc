"""Choice of the plan: the longest context and highest cache precision that fit, or a refusal."""

from __future__ import annotations

from dataclasses import replace

from magistral_mlx.cache.scheme import SCHEMES
from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.memory.machine import Machine
from magistral_mlx.memory.peak import BackendProfile
from magistral_mlx.memory.plan import (
    DEFAULT_CONTEXT,
    Plan,
    PlannedModel,
    PlanRequest,
    fit,
    gib,
    longest_context,
)
from magistral_mlx.memory.refusal import refusal


def make_plan(
    model: PlannedModel,
    machine: Machine,
    profile: BackendProfile,
    request: PlanRequest | None = None,
) -> Plan:
    """Return the best plan that fits.

    The context is the requested one, by default the model's up to 40,960 tokens, at the highest
    cache precision that fits. If the default fits at none, it is shortened, at the lowest one.

    Raises:
        OutOfMemory: the request does not fit, or nothing does.
        InvalidOption: the context or the memory limit is out of range.
    """
    request = request or PlanRequest()
    if request.context is not None and request.context > model.longest_context:
        raise InvalidOption(
            f"context is {request.context:,}; it must be at most {model.longest_context:,} tokens "
            "with this model."
        )
    if request.memory_limit is not None and request.memory_limit > machine.limit:
        raise InvalidOption(
            f"the memory limit is {gib(request.memory_limit)}; {machine.name} allows "
            f"{gib(machine.limit)}. Give less, or leave it out."
        )
    context = request.context or min(DEFAULT_CONTEXT, model.longest_context)
    schemes = [request.kv] if request.kv else list(SCHEMES)
    for name in schemes:
        plan = fit(model, machine, profile, request, name, context)
        if plan.headroom >= 0:
            return plan
    if request.context is None:
        longest = longest_context(model, machine, profile, request, schemes[-1], context)
        if longest:
            short = fit(model, machine, profile, request, schemes[-1], longest)
            return replace(short, shortened=True)
    raise OutOfMemory(refusal(model, machine, profile, request, plan))
