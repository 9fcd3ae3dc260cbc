"""What a conversion reports while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Downloading:
    """Bytes of one source file that are here, of all that it has."""

    file: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Converting:
    """How far the whole conversion is. Bytes are those of the source."""

    tensors_done: int
    tensors: int
    bytes_done: int
    bytes_total: int


Progress = Downloading | Converting
OnProgress = Callable[[Progress], None]
