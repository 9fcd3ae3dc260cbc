"""Where the bytes of a conversion go, by the part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from magistral_convert.plan import Plan, Task
from magistral_mlx.checkpoint.names import PROJECTOR, VISION

# The first whose text stands in a tensor's name; anything else is a norm.
_GROUPS = (
    (VISION, "vision tower"),
    (PROJECTOR, "projector"),
    ("embed_tokens", "embedding"),
    ("lm_head", "head"),
    ("self_attn", "attention"),
    (".mlp.", "MLP"),
)
_REST = "norms"


@dataclass(frozen=True)
class Group:
    """One part of the model: parameters, and bytes before and after."""

    name: str
    parameters: int
    source_bytes: int
    output_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.output_bytes / self.parameters


def summarize(plan: Plan) -> list[Group]:
    """The parts of the model, in the model's order."""
    names = [name for _, name in _GROUPS[2:]] + [_REST] + [name for _, name in _GROUPS[:2]]
    by_name = {name: [task for task in plan.tasks if _group(task) == name] for name in names}
    return [_total(name, tasks) for name, tasks in by_name.items() if tasks]


def _group(task: Task) -> str:
    return next((name for text, name in _GROUPS if text in task.name), _REST)


def _total(name: str, tasks: Sequence[Task]) -> Group:
    return Group(
        name,
        parameters=sum(task.rows * task.columns for task in tasks),
        source_bytes=sum(task.source.nbytes for task in tasks),
        output_bytes=sum(task.nbytes for task in tasks),
    )
