"""Which rank this process is, by what mlx.launch sets in the environment; without MLX."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from magistral_mlx.errors import InvalidOption

Backend = Literal["ring", "jaccl"]
CHOSEN = "MAGISTRAL_MLX_SPLIT"  # the split that --machines has chosen; tells that it has started us
FOLDERS = "MAGISTRAL_MLX_FOLDERS"  # JSON: rank 0's folder of a model -> this machine's


@dataclass(frozen=True)
class Place:
    """One process among those that compute a model together.

    backend: of MLX, that connects them. addresses: (host, port) of each rank's end of the ring; of
    another backend, rank 0's alone. Rank 0 listens on its host for the others.
    """

    rank: int
    size: int
    backend: Backend
    addresses: tuple[tuple[str, int], ...]

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which runs the program."""
        return self.rank == 0

    def name(self, rank: int) -> str:
        """Return what a rank is called in messages."""
        if rank < len(self.addresses):
            return f"rank {rank} ({self.addresses[rank][0]})"
        return f"rank {rank}"


def place() -> Place | None:
    """Return the place of this process; None if it was not started as one of several.

    Raises:
        InvalidOption: the environment names a rank that there is not.
    """
    number = os.environ.get("MLX_RANK")
    if number is None:
        return None
    try:
        if file := os.environ.get("MLX_HOSTFILE"):
            found = _ring(int(number), file)
        elif coordinator := os.environ.get("MLX_JACCL_COORDINATOR"):
            devices = _json(os.environ["MLX_IBV_DEVICES"])
            found = Place(int(number), len(devices), "jaccl", (_address(coordinator),))
        else:
            return None
        if not 0 <= found.rank < found.size:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise InvalidOption(
            f"MLX_RANK is {number}, and MLX_HOSTFILE or MLX_JACCL_COORDINATOR do not describe "
            "such a rank; start all ranks with mlx.launch, or with --machines."
        ) from None
    return found if found.size > 1 else None


def folder_here(folder: str) -> Path:
    """Return where this machine has the model that rank 0 has in `folder`: there, unless
    --machines has found it elsewhere."""
    known = json.loads(os.environ.get(FOLDERS, "{}"))
    return Path(known.get(folder, folder))


def _ring(rank: int, file: str) -> Place:
    """mlx.launch's host file: for each rank the addresses that it listens on."""
    return Place(rank, len(hosts := _json(file)), "ring", tuple(_address(h[0]) for h in hosts))


def _json(file: str) -> list[list[str]]:
    with open(file, encoding="utf-8") as stream:
        found = json.load(stream)
    if not isinstance(found, list):
        raise TypeError
    return found


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)
