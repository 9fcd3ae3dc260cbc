"""The error for a plan that does not fit: by how much, and which changes would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from magistral_mlx.cache.scheme import smaller_schemes
from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors
from magistral_mlx.memory.chips import GIB, working_set
from magistral_mlx.memory.known import quantized_weights
from magistral_mlx.memory.machine import APPLE_SIZES, Machine
from magistral_mlx.memory.peak import MIB, BackendProfile
from magistral_mlx.memory.plan import Plan, PlannedModel, PlanRequest, fit, gib, longest_context
from magistral_mlx.quantization import Quantization

_SYSTEM = 4 * GIB  # left to macOS when the GPU's limit is raised
_OFFERED = 3  # changes that an error names


@dataclass(frozen=True)
class _Case:
    """The requested plan, or a variation of it."""

    model: PlannedModel
    machine: Machine
    profile: BackendProfile
    request: PlanRequest
    scheme: str
    context: int

    @property
    def plan(self) -> Plan:
        return fit(self.model, self.machine, self.profile, self.request, self.scheme, self.context)

    @property
    def hopeless(self) -> bool:
        return self.model.weights.decoder > (self.request.memory_limit or self.machine.limit)

    def shortened(self) -> _Case | None:
        """Return the case with the longest shorter context that fits, or None."""
        longest = longest_context(
            self.model, self.machine, self.profile, self.request, self.scheme, self.context
        )
        return replace(self, context=longest) if 0 < longest < self.context else None


@dataclass(frozen=True, eq=False)
class _Change:
    """A change that may make the plan fit.

    cost: rank by how much is given up. words: advice, with fields of the resulting plan.
    """

    cost: int
    words: str
    apply: Callable[[_Case], _Case]


_Choice = tuple[_Change | None, ...]  # at most one change of each kind; small ones first in a kind
_SHORTER = _Change(1, "--context {plan.context}", lambda case: case)


def refusal(
    model: PlannedModel, machine: Machine, profile: BackendProfile, request: PlanRequest, plan: Plan
) -> str:
    """Return the message for a plan over its limit, with up to three changes that help."""
    case = _Case(model, machine, profile, request, plan.scheme.name, plan.context)
    who = "the memory limit" if request.memory_limit else machine.name
    return (
        f"{model.source} with {plan.context:,} tokens of context and a {plan.scheme.name} KV "
        f"cache {needs(plan, who)}: {gib(-plan.headroom)} are missing. "
        f"{advice(_ways_out(case), 'a larger machine')}"
    )


def needs(plan: Plan, who: str) -> str:
    """Return what a plan needs of each kind of memory, and what `who` allows, in words."""
    peak = plan.peak
    return (
        f"needs {gib(peak.total)} (weights {gib(peak.weights + peak.vision)}, cache "
        f"{gib(peak.cache)}, work {gib(peak.workspace)}), and {who} allows {gib(plan.limit)}"
    )


def advice(ways: list[str], larger: str) -> str:
    """Return the ways to make a plan fit as a sentence. larger: what to take if there is none."""
    if not ways:
        return f"Nothing that can be set makes it fit: take a smaller model or {larger}."
    if len(ways) == 1:
        return f"Only this makes it fit: {ways[0]}."
    return f"Any of these makes it fit: {'; '.join(ways)}."


def _ways_out(case: _Case) -> list[str]:
    """Return changes, alone or combined, that make the plan fit, the smallest first."""
    kinds = [
        list(_smaller_caches(case)),
        [_SHORTER],
        list(_fewer_images(case)),
        list(_no_draft(case)),
        list(_higher_limit(case)),
        list(_fewer_bits(case)),
        list(_larger_machines(case)),
    ]
    choices = [choice for choice in product(*([*kind, None] for kind in kinds)) if any(choice)]
    ways: list[str] = []
    offered: list[_Choice] = []
    for choice in sorted(choices, key=lambda choice: sum(one.cost for one in choice if one)):
        if any(_is_more(choice, earlier, kinds) for earlier in offered):
            continue
        plan = _outcome(case, choice)
        if plan is not None:
            offered.append(choice)
            ways.append(_worded(choice, plan))
        if len(ways) == _OFFERED:
            break
    return ways


def _is_more(choice: _Choice, earlier: _Choice, kinds: list[list[_Change]]) -> bool:
    """Whether `choice` is redundant: at least as large as an earlier one in every kind, or of
    exactly the same kinds."""
    as_much = all(
        b is None or (a is not None and kind.index(a) >= kind.index(b))
        for a, b, kind in zip(choice, earlier, kinds, strict=True)
    )
    return as_much or all(bool(a) == bool(b) for a, b in zip(choice, earlier, strict=True))


def _outcome(case: _Case, choice: _Choice) -> Plan | None:
    """Return the plan with these changes, if it fits."""
    changed: _Case | None = case
    for change in choice:
        if changed and change:
            changed = change.apply(changed)
    if changed and not changed.hopeless and _SHORTER in choice:
        changed = changed.shortened()
    if changed is None or changed.hopeless:
        return None
    plan = changed.plan
    return plan if plan.headroom >= 0 else None


def _worded(choice: _Choice, plan: Plan) -> str:
    mib = -(-plan.peak.total // MIB)
    said = [change.words.format(plan=plan, mib=mib) for change in choice if change]
    options = " ".join(words for words in said if words.startswith("--"))
    others = " and ".join(words for words in said if not words.startswith("--"))
    return " with ".join(filter(None, [others, options]))


def _smaller_caches(case: _Case) -> Iterator[_Change]:
    for name in smaller_schemes(case.scheme):
        yield _Change(1, f"--kv {name}", partial(replace, scheme=name))


def _fewer_images(case: _Case) -> Iterator[_Change]:
    most = case.request.images if case.model.config.vision else 0
    for count in sorted({most * 3 // 4, most // 2, most // 4, 1, 0}, reverse=True):
        if count < most:
            words = f"--images {count}" if count else "--images 0 (no images)"
            yield _Change(1, words, partial(replace, request=replace(case.request, images=count)))


def _no_draft(case: _Case) -> Iterator[_Change]:
    if case.model.draft:
        yield _Change(1, "no draft model", partial(_with_model, draft=None))


def _higher_limit(case: _Case) -> Iterator[_Change]:
    machine, limit = case.machine, case.request.memory_limit
    if limit and limit < machine.limit:
        yield _Change(1, "--memory-limit {mib}MiB", _without_memory_limit)
    elif machine.is_mac and machine.memory - _SYSTEM > machine.limit:
        raised = replace(machine, limit=machine.memory - _SYSTEM)
        words = "sudo sysctl iogpu.wired_limit_mb={mib} (until the next restart)"
        yield _Change(2, words, partial(replace, machine=raised))


def _fewer_bits(case: _Case) -> Iterator[_Change]:
    """Yield conversions to 4 bits, and to 3 bits, which cost quality and so rank last."""
    shapes = expected_tensors(case.model.config).items()
    values = sum(math.prod(shape) for name, shape in shapes if name.startswith(LANGUAGE))
    now = case.model.weights.decoder * 8 / values
    for bits, cost, option in ((4, 2, ""), (3, 7, " --bits 3")):
        scheme = Quantization(bits=bits)
        weights = quantized_weights(case.model.config, scheme, case.profile.float_bytes)
        if weights.decoder * 8 / values < now - 0.5:
            words = f"its {bits}-bit conversion (magistral-mlx convert{option})"
            yield _Change(cost, words, partial(_with_model, weights=weights))


def _larger_machines(case: _Case) -> Iterator[_Change]:
    if case.machine.is_mac and not case.request.memory_limit:
        for size in APPLE_SIZES:
            memory = size * GIB
            if memory > case.machine.memory:
                larger = replace(case.machine, memory=memory, limit=working_set(memory))
                yield _Change(6, f"a Mac with {size} GB", partial(replace, machine=larger))


def _with_model(case: _Case, **changes: Any) -> _Case:
    return replace(case, model=replace(case.model, **changes))


def _without_memory_limit(case: _Case) -> _Case:
    return replace(case, request=replace(case.request, memory_limit=None))
