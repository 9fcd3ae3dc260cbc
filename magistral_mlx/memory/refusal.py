"""Why something does not fit, by how much, and what would make it fit: one line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from magistral_mlx.cache.scheme import SCHEMES
from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors
from magistral_mlx.memory.machine import GIB, Machine
from magistral_mlx.memory.peak import MIB, Traits
from magistral_mlx.memory.plan import Model, Plan, Wish, fit, gib, longest_context

_SYSTEM = 4 * GIB  # what macOS needs for itself when the GPU's limit is raised


def refusal(model: Model, machine: Machine, traits: Traits, wish: Wish, plan: Plan) -> str:
    """The message for a plan that misses its limit, with up to three changes that would help."""
    changes = [
        *_smaller_cache(model, machine, traits, wish, plan),
        *_shorter_context(model, machine, traits, wish, plan),
        *_no_pictures(model, machine, traits, wish, plan),
        *_fewer_bits(model),
        *_higher_limit(machine, wish, plan),
    ]
    advice = (
        f"Any of these makes it fit: {'; '.join(changes[:3])}."
        if changes
        else "Nothing that can be set makes it fit: take a smaller model or a larger machine."
    )
    peak = plan.peak
    who = "the memory limit" if wish.memory_limit else machine.name
    return (
        f"{model.source} with {plan.context:,} tokens of context and a {plan.scheme.name} KV "
        f"cache needs {gib(peak.total)} (weights {gib(peak.weights + peak.vision)}, cache "
        f"{gib(peak.cache)}, work {gib(peak.workspace)}), and {who} allows "
        f"{gib(plan.limit)}: {gib(-plan.headroom)} are missing. {advice}"
    )


def _smaller_cache(
    model: Model, machine: Machine, traits: Traits, wish: Wish, plan: Plan
) -> Iterator[str]:
    for name in SCHEMES[SCHEMES.index(plan.scheme.name) + 1 :]:
        if fit(model, machine, traits, wish, name, plan.context).headroom >= 0:
            yield f"--kv {name}"
            return


def _shorter_context(
    model: Model, machine: Machine, traits: Traits, wish: Wish, plan: Plan
) -> Iterator[str]:
    """The longest context at the scheme asked for, and at those that hold more."""
    for name in SCHEMES[SCHEMES.index(plan.scheme.name) :]:
        longest = longest_context(model, machine, traits, wish, name, plan.context)
        if 0 < longest < plan.context:
            yield f"--context {longest} --kv {name}"


def _no_pictures(
    model: Model, machine: Machine, traits: Traits, wish: Wish, plan: Plan
) -> Iterator[str]:
    if wish.pictures and model.config.vision:
        without = replace(wish, pictures=0)
        if fit(model, machine, traits, without, plan.scheme.name, plan.context).headroom >= 0:
            yield "no pictures"


def _fewer_bits(model: Model) -> Iterator[str]:
    shapes = expected_tensors(model.config).items()
    values = sum(math.prod(shape) for name, shape in shapes if name.startswith(LANGUAGE))
    if model.weights.decoder * 8 / values > 8:
        yield "its 4-bit conversion (magistral-mlx convert)"


def _higher_limit(machine: Machine, wish: Wish, plan: Plan) -> Iterator[str]:
    if wish.memory_limit and plan.peak.total <= machine.limit:
        yield f"--memory-limit {-(-plan.peak.total // MIB)}MB"
    elif machine.is_mac and plan.peak.total <= machine.memory - _SYSTEM:
        megabytes = -(-plan.peak.total // MIB)
        yield f"sudo sysctl iogpu.wired_limit_mb={megabytes}, until the next restart"
