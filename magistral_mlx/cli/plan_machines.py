"""`magistral-mlx plan --machines`: what each of several Macs holds of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.plan import gib

if TYPE_CHECKING:
    from magistral_mlx.memory.machine import Machine
    from magistral_mlx.memory.machines import SplitChoice, SplitModel, SplitPlan
    from magistral_mlx.memory.plan import PlanRequest

MOST_MACHINES = 64


def named_machines(text: str) -> list[Machine]:
    """The Macs that a list such as "16GB,M4 Pro 48GB" names.

    Raises:
        InvalidOption: fewer than two, or one that is no machine.
    """
    from magistral_mlx.memory.machine import named_machine

    names = [name.strip() for name in text.split(",")]
    if len(names) < 2:
        raise InvalidOption(
            f"--machines is {text!r}; it must name two machines or more, as in '16GB,16GB'. For "
            "one there is --machine."
        )
    if len(names) > MOST_MACHINES:
        raise InvalidOption(
            f"--machines names {len(names)} machines; it must be {MOST_MACHINES} at most."
        )
    return [named_machine(name) for name in names]


def split_facts(
    model: SplitModel, machines: Sequence[Machine], request: PlanRequest, split: SplitChoice
) -> dict[str, Any]:
    """Everything that the report shows, as JSON types; bytes are integers."""
    from magistral_mlx.errors import OutOfMemory
    from magistral_mlx.memory.choose_split import make_split_plan
    from magistral_mlx.memory.peak import GPU

    facts = {
        "model": model.source,
        "machines": [
            {"name": machine.name, "memory": machine.memory, "limit": machine.limit}
            for machine in machines
        ],
    }
    try:
        plan = make_split_plan(model, machines, GPU, request, split)
    except OutOfMemory as error:
        return facts | {"fits": False, "why": str(error)}
    return facts | {
        "fits": True,
        "split": plan.kind,
        "context": plan.context,
        "kv": plan.scheme,
        "prefill_chunk": plan.plans[0].chunk,
        "images": plan.plans[0].images,
        "notes": _notes(plan, machines, split),
        "ranks": [
            {
                "machine": one.machine.name,
                "layers": [*_bounds(part.layers(model.config.text.num_hidden_layers))],
                "heads": one.model.config.text.num_attention_heads,
                "bytes": {
                    "weights": one.peak.weights,
                    "vision": one.peak.vision,
                    "cache": one.peak.cache,
                    "workspace": one.peak.workspace,
                    "total": one.peak.total,
                    "limit": one.limit,
                    "headroom": one.headroom,
                },
            }
            for part, one in zip(plan.parts, plan.plans, strict=True)
        ],
    }


def _bounds(layers: range) -> tuple[int, int]:
    return layers.start, layers.stop


def _notes(plan: SplitPlan, machines: Sequence[Machine], asked: SplitChoice) -> list[str]:
    """What decided the plan, a sentence each."""
    notes = []
    if asked == "auto" and plan.kind == "tensor":
        notes.append(
            "Tensor parallel, for a fast link such as Thunderbolt; over Wi-Fi or a slow network "
            "--split pipeline is faster."
        )
    elif asked == "auto":
        notes.append(
            "Pipeline parallel, as the model cannot be divided tensor parallel over "
            f"{len(machines)} machines, or does not fit so."
        )
    if len({machine.limit for machine in machines}) > 1:
        if plan.kind == "tensor":
            least = min(machines, key=lambda machine: machine.limit)
            notes.append(
                f"The machines are unequal, and tensor parallel gives each the same part: "
                f"{least.name} decides what fits. --split pipeline divides by memory."
            )
        else:
            notes.append("The machines are unequal: each gets layers in proportion to its memory.")
    if plan.shortened:
        notes.append("The context is the longest that the smallest KV cache allows here.")
    return notes


def show_split(facts: dict[str, Any]) -> None:
    """Print the facts as a table of ranks."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from magistral_mlx.cli.terminal import print_wide

    console = Console(width=None if Console().is_terminal else 1000, highlight=False)
    console.print(f"[bold]{escape(facts['model'])}[/bold] over {len(facts['machines'])} machines")
    if not facts["fits"]:
        console.print(f"[bold red]does not fit[/bold red]: {escape(facts['why'])}")
        return
    images = f", {facts['images']} image(s) of the largest size" if facts["images"] else ""
    console.print(
        f"[bold]{facts['context']:,} tokens of context, KV cache {facts['kv']}[/bold], "
        f"{facts['split']} parallel, prompts in chunks of {facts['prefill_chunk']}{images}"
    )
    table = Table("rank", "machine", "holds", box=None, pad_edge=False)
    for column in ("weights", "KV cache", "workspace", "in all", "allowed"):
        table.add_column(column, justify="right")
    for rank, held in enumerate(facts["ranks"]):
        sizes = held["bytes"]
        table.add_row(
            str(rank),
            held["machine"],
            _holds(rank, facts["split"], held),
            gib(sizes["weights"] + sizes["vision"]),
            gib(sizes["cache"]),
            gib(sizes["workspace"]),
            gib(sizes["total"]),
            gib(sizes["limit"]),
        )
    print_wide(table)
    for note in facts["notes"]:
        console.print(note)


def _holds(rank: int, split: str, held: dict[str, Any]) -> str:
    first, end = held["layers"]
    beside = " embedding, head, tower" if rank == 0 else ""
    if split == "tensor":
        return f"{held['heads']} heads of each layer" + (f",{beside}" if beside else "")
    return f"layers {first} to {end - 1}" + (f",{beside}" if beside else "")
