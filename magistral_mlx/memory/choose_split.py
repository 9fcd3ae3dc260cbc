"""Choice of the plan over machines: split, context and cache precision that fit, or a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from magistral_mlx.cache.scheme import SCHEMES
from magistral_mlx.errors import InvalidOption, OutOfMemory
from magistral_mlx.memory.estimate import bandwidth_of
from magistral_mlx.memory.machine import Machine
from magistral_mlx.memory.machines import (
    SplitChoice,
    SplitModel,
    SplitPlan,
    longest_split_context,
    plan_split,
)
from magistral_mlx.memory.machines_refusal import split_refusal
from magistral_mlx.memory.parts import check_tensor, tensor_counts
from magistral_mlx.memory.peak import BackendProfile, sum_weights
from magistral_mlx.memory.plan import DEFAULT_CONTEXT, PlanRequest, gib
from magistral_mlx.split import SplitKind

_USUAL_BANDWIDTH = 120e9  # bytes a second, of an M4, where a machine's is not known


def make_split_plan(
    model: SplitModel,
    machines: Sequence[Machine],
    profile: BackendProfile,
    request: PlanRequest | None = None,
    split: SplitChoice = "auto",
    latency: float | None = None,
) -> SplitPlan:
    """Return the best plan that fits on every machine.

    As `make_plan` on one: the requested context, by default the model's up to 40,960 tokens, at the
    highest cache precision that fits, else a shorter one. "auto" is tensor parallel where the
    model can be divided so, it fits, and the link is fast enough; else pipeline parallel.

    Args:
        latency: seconds of a round trip over the slowest link; None takes a fast one.

    Raises:
        OutOfMemory: it does not fit.
        InvalidOption: fewer than two machines, a split that the model does not allow, or a context
            or memory limit out of range.
    """
    request = request or PlanRequest()
    _check(model, machines, request)
    first = _splits_to_try(model, machines, split, latency)
    context = request.context or min(DEFAULT_CONTEXT, model.longest_context)
    schemes = [request.kv] if request.kv else list(SCHEMES)
    for kind in first:
        for scheme in schemes:
            plan = plan_split(model, machines, profile, request, kind, scheme, context)
            if plan.fits:
                return plan
    if request.context is None:
        for kind in first:
            longest = longest_split_context(
                model, machines, profile, request, kind, schemes[-1], context
            )
            if longest:
                short = plan_split(model, machines, profile, request, kind, schemes[-1], longest)
                return replace(short, shortened=True)
    raise OutOfMemory(split_refusal(model, machines, profile, request, plan))


def _splits_to_try(
    model: SplitModel, machines: Sequence[Machine], split: SplitChoice, latency: float | None
) -> list[SplitKind]:
    """The splits that a choice stands for, the better one first.

    Raises:
        InvalidOption: a split that the model does not allow over so many ranks.
    """
    ranks = len(machines)
    if split == "tensor":
        check_tensor(model.config, ranks)
        return ["tensor"]
    if split == "pipeline" or ranks not in tensor_counts(model.config.text):
        return ["pipeline"]
    if latency is None or tensor_is_faster(model, machines, latency):
        return ["tensor", "pipeline"]
    return ["pipeline", "tensor"]


def tensor_is_faster(model: SplitModel, machines: Sequence[Machine], latency: float) -> bool:
    """Whether decoding gains more by reading parts of the weights at once than sums cost.

    Two sums a layer and token each wait for a round trip for every machine but one. Pipeline
    parallel reads as long as one machine would, and waits once.
    """
    ranks = len(machines)
    speeds = [bandwidth_of(machine) or _USUAL_BANDWIDTH for machine in machines]
    decoder = sum_weights(model.sizes, model.config).read
    gained = decoder / min(speeds) * (1 - 1 / ranks)
    return 2 * model.config.text.num_hidden_layers * (ranks - 1) * latency < gained


def _check(model: SplitModel, machines: Sequence[Machine], request: PlanRequest) -> None:
    if len(machines) < 2:
        raise InvalidOption(
            "machines names one machine; give two or more, as in '16GB,16GB', or leave it out."
        )
    if request.context is not None and request.context > model.longest_context:
        raise InvalidOption(
            f"context is {request.context:,}; it must be at most {model.longest_context:,} tokens "
            "with this model."
        )
    least = min(machines, key=lambda machine: machine.limit)
    if request.memory_limit is not None and request.memory_limit > least.limit:
        raise InvalidOption(
            f"the memory limit is {gib(request.memory_limit)}; {least.name} allows "
            f"{gib(least.limit)}. Give less, or leave it out."
        )
