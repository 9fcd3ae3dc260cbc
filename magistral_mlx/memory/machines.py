"""Memory plans for one split of a model over machines, at one KV cache scheme and context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.config import ModelConfig
from magistral_mlx.memory.machine import Machine
from magistral_mlx.memory.parts import check_tensor, part_weights, pipeline_shares
from magistral_mlx.memory.peak import BackendProfile, loaded_sizes
from magistral_mlx.memory.plan import Plan, PlannedModel, PlanRequest, fit, longest_that
from magistral_mlx.split import Split, SplitKind, divided_config

SplitChoice = Literal["tensor", "pipeline", "auto"]
SPLITS: tuple[SplitChoice, ...] = ("tensor", "pipeline", "auto")


@dataclass(frozen=True)
class SplitModel:
    """A model to be planned for over machines.

    source: the user's name of the model. sizes: bytes of each tensor in memory, by canonical name.
    """

    source: str
    config: ModelConfig
    sizes: Mapping[str, int]

    @property
    def longest_context(self) -> int:
        """Largest context of the model, in tokens."""
        return self.config.text.max_position_embeddings


@dataclass(frozen=True)
class SplitPlan:
    """A plan for each rank, all with one context, KV cache scheme and prefill chunk."""

    kind: SplitKind
    parts: tuple[Split, ...]
    plans: tuple[Plan, ...]
    shortened: bool = False

    @property
    def context(self) -> int:
        return self.plans[0].context

    @property
    def scheme(self) -> str:
        """Name of the scheme of the KV caches."""
        return self.plans[0].scheme.name

    @property
    def fits(self) -> bool:
        return all(plan.headroom >= 0 for plan in self.plans)


def split_model(checkpoint: Checkpoint, source: str, float_bytes: int) -> SplitModel:
    """Describe a checkpoint for plans over machines."""
    return SplitModel(source, checkpoint.config, loaded_sizes(checkpoint, float_bytes))


def plan_split(
    model: SplitModel,
    machines: Sequence[Machine],
    profile: BackendProfile,
    request: PlanRequest,
    kind: SplitKind,
    scheme: str,
    context: int,
) -> SplitPlan:
    """Plan one split, scheme and context with the largest prefill chunk that fits everywhere."""
    count = len(machines)
    shares: tuple[int, ...] = ()
    if kind == "tensor":
        check_tensor(model.config, count)
    else:
        limits = [request.memory_limit or machine.limit for machine in machines]
        shares = pipeline_shares(model.config, model.sizes, limits)
    parts = [Split(kind, rank, count, shares) for rank in range(count)]
    planned = [
        PlannedModel(
            model.source,
            divided_config(model.config, part),
            part_weights(part, model.sizes, model.config),
        )
        for part in parts
    ]

    def plans(profile: BackendProfile) -> list[Plan]:
        pairs = zip(planned, machines, strict=True)
        return [fit(one, machine, profile, request, scheme, context) for one, machine in pairs]

    found = plans(profile)
    chunk = min(plan.chunk for plan in found)
    if any(plan.chunk != chunk for plan in found):
        found = plans(replace(profile, chunk=chunk))
    return SplitPlan(kind, tuple(parts), tuple(found))


def longest_split_context(
    model: SplitModel,
    machines: Sequence[Machine],
    profile: BackendProfile,
    request: PlanRequest,
    kind: SplitKind,
    scheme: str,
    most: int,
) -> int:
    """Return the longest context that fits, a multiple of 1,024 up to `most`; 0 if none does."""
    return longest_that(
        lambda context: plan_split(model, machines, profile, request, kind, scheme, context).fits,
        most,
    )
