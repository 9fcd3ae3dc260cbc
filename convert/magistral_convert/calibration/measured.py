"""Measured sensitivities, kept in the user's cache: another size needs no other pass."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from magistral_convert.calibration.allocation import Choices, SchemeChoice
from magistral_convert.disk import write_file
from magistral_mlx.paths import home_dir
from magistral_mlx.quantization import Quantization

_FORMAT = 4  # to be raised when the same weights and text give other figures


class MeasuredChoices:
    """The file of what was measured with certain weights, text and group size."""

    def __init__(self, *identity: str) -> None:
        digest = hashlib.sha256(json.dumps([_FORMAT, *identity]).encode()).hexdigest()
        self._path: Path = home_dir() / "sensitivity" / f"{digest[:32]}.json"

    def load(self) -> Choices | None:
        """Return what was measured; None where it was not, or its file is damaged."""
        try:
            found = json.loads(self._path.read_bytes())
            return {
                name: [
                    SchemeChoice(Quantization(bits, group_size), nbytes, cost)
                    for bits, group_size, nbytes, cost in choices
                ]
                for name, choices in found.items()
            }
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def save(self, choices: Choices) -> None:
        """Keep what was measured. A disk that cannot be written costs a pass next time only."""
        content = {
            name: [[c.scheme.bits, c.scheme.group_size, c.nbytes, c.cost] for c in of_matrix]
            for name, of_matrix in choices.items()
        }
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, json.dumps(content).encode())
