"""The error for a split model that does not fit: on which machine, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

from magistral_mlx.cache.scheme import smaller_schemes
from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.chips import GIB, working_set
from magistral_mlx.memory.known import quantized_sizes
from magistral_mlx.memory.machine import APPLE_SIZES, Machine
from magistral_mlx.memory.machines import (
    SplitModel,
    SplitPlan,
    longest_split_context,
    plan_split,
)
from magistral_mlx.memory.peak import BackendProfile
from magistral_mlx.memory.plan import PlanRequest
from magistral_mlx.memory.refusal import advice, needs
from magistral_mlx.quantization import Quantization
from magistral_mlx.split import SplitKind

_OFFERED = 3  # changes that an error names


@dataclass(frozen=True)
class _SplitCase:
    """The requested plan, or a variation of it. shorter: with the longest context that fits."""

    model: SplitModel
    machines: tuple[Machine, ...]
    profile: BackendProfile
    request: PlanRequest
    kind: SplitKind
    scheme: str
    context: int
    shorter: bool = False

    def plan(self) -> SplitPlan | None:
        """Return the plan if it fits."""
        arguments = (self.model, self.machines, self.profile, self.request, self.kind, self.scheme)
        try:
            context = self.context
            if self.shorter:
                context = longest_split_context(*arguments, context)
            plan = plan_split(*arguments, context) if context else None
        except InvalidOption:
            return None
        return plan if plan and plan.fits else None


_Variation = tuple[str, str, Callable[[_SplitCase], _SplitCase]]  # kind, words, change


def split_refusal(
    model: SplitModel,
    machines: Sequence[Machine],
    profile: BackendProfile,
    request: PlanRequest,
    plan: SplitPlan,
) -> str:
    """Return the message for a plan over the limit of a machine, with up to three changes."""
    case = _SplitCase(
        model, tuple(machines), profile, request, plan.kind, plan.scheme, plan.context
    )
    short = [
        f"rank {rank} {needs(one, one.machine.name)}"
        for rank, one in enumerate(plan.plans)
        if one.headroom < 0
    ]
    return (
        f"{model.source} over {len(machines)} machines ({plan.kind} parallel) with "
        f"{plan.context:,} tokens of context and a {plan.scheme} KV cache does not fit: "
        f"{'; '.join(short)}. {advice(_ways_out(case), 'larger machines')}"
    )


def _ways_out(case: _SplitCase) -> list[str]:
    """Return changes, alone or two of different kinds, that make the plan fit."""
    variations = list(_variations(case))
    ways: list[str] = []
    offered: list[set[str]] = []  # kinds; one way of each combination is enough
    for count in (1, 2):
        for chosen in combinations(variations, count):
            kinds = {kind for kind, _, _ in chosen}
            if len(kinds) < count or any(known <= kinds for known in offered):
                continue
            changed = case
            for _, _, change in chosen:
                changed = change(changed)
            plan = changed.plan()
            if plan is not None:
                offered.append(kinds)
                ways.append(" with ".join(w.format(plan=plan) for _, w, _ in reversed(chosen)))
            if len(ways) == _OFFERED:
                return ways
    return ways


def _variations(case: _SplitCase) -> Iterator[_Variation]:
    """Yield single changes, those that give up least first."""
    other: SplitKind = "pipeline" if case.kind == "tensor" else "tensor"
    yield "split", f"--split {other}", _set(kind=other)
    for scheme in smaller_schemes(case.scheme):
        yield "kv", f"--kv {scheme}", _set(scheme=scheme)
    yield "context", "--context {plan.context}", _set(shorter=True)
    if case.model.config.vision and case.request.images:
        text_alone = replace(case.request, images=0)
        yield "images", "--images 0 (no images)", _set(request=text_alone)
    now = sum(case.model.sizes.values())
    for bits, option in ((4, ""), (3, " --bits 3")):
        quantization = Quantization(bits=bits)
        sizes = quantized_sizes(case.model.config, quantization, case.profile.float_bytes)
        if sum(sizes.values()) < now * 0.9:
            words = f"its {bits}-bit conversion (magistral-mlx convert{option})"
            yield "bits", words, _set(model=replace(case.model, sizes=sizes))
    least = min(case.machines, key=lambda machine: machine.limit)
    for size in APPLE_SIZES:
        if size * GIB > least.memory:
            yield "size", f"{size} GB in each machine", partial(_with_memory, memory=size * GIB)
    for count in range(len(case.machines) + 1, 9):
        more = case.machines + (least,) * (count - len(case.machines))
        yield "count", f"{count} machines ({least.name} added)", _set(machines=more)


def _set(**changes: Any) -> Callable[[_SplitCase], _SplitCase]:
    return lambda case: replace(case, **changes)


def _with_memory(case: _SplitCase, memory: int) -> _SplitCase:
    """The case with at least so much memory in each machine."""
    machines = [
        machine
        if machine.memory >= memory
        else replace(machine, memory=memory, limit=working_set(memory))
        for machine in case.machines
    ]
    return replace(case, machines=tuple(machines))
