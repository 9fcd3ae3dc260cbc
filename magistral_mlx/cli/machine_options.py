"""The options --machines and --split of commands that run on several machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from magistral_mlx.cli.params import declared
from magistral_mlx.memory.machines import SPLITS, SplitChoice
from magistral_mlx.option_spec import Choice, Name, option

_Command = TypeVar("_Command", bound=Callable[..., Any])
SECTION = "Machines"


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """The machines that hold a model together, and how it is split over them."""

    machines: str | None = option(
        None,
        Name("NAME,NAME"),
        "Machines that hold the model together, this one first, as in mac1.local,mac2.local; or a "
        "host file of mlx.distributed_config.",
        section=SECTION,
    )
    split: SplitChoice | None = option(
        None,
        Choice(*SPLITS),
        "Whether each machine has a part of every layer (tensor), or some of the layers "
        "(pipeline); auto decides by model, memory and link.",
        unset="auto",
        section=SECTION,
    )


def machine_options(command: _Command) -> _Command:
    """Give a command --machines and --split."""
    return declared(MachineOptions)(command)


def split_option(command: _Command) -> _Command:
    """Give a command --split alone."""
    return declared(MachineOptions, "split")(command)
