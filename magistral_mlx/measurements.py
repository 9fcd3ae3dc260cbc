"""Measurements of this machine that `magistral-mlx doctor --check` keeps for plans and loading.

They are stored in the user's folder by machine, and by versions of MLX and of this package: another
version computes with other kernels.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from magistral_mlx import __version__
from magistral_mlx.paths import home_dir


@dataclass(frozen=True)
class Measurements:
    """Measurements of a machine; None for what was not measured.

    bandwidth: bytes per second that the device reads from memory. flops: floating-point operations
    per second of a prompt's matrix products. attention: of its attention to a long context. excess:
    bytes that a run took beyond its plan.
    """

    bandwidth: float | None = None
    flops: float | None = None
    excess: int = 0
    attention: float | None = None


NOTHING_MEASURED: Final[Measurements] = Measurements()


def read_measurements(machine: str) -> Measurements:
    """Return the measurements of `machine`."""
    stored = _read("machines").get(_key(machine))
    if not isinstance(stored, dict):
        return NOTHING_MEASURED
    found = {name: stored.get(name) for name in ("bandwidth", "flops", "attention", "excess")}
    valid = {name: x for name, x in found.items() if isinstance(x, int | float) and x >= 0}
    excess = int(valid.pop("excess", 0))
    return Measurements(excess=excess, **valid)


def store_measurements(machine: str, measured: Measurements) -> Path:
    """Store measurements in place of earlier ones, and return the path of the file.

    Raises:
        OSError: the file cannot be written.
    """
    return _write("machines", _key(machine), asdict(measured))


def read_float16_answer(fingerprint: str) -> bool | None:
    """Whether a checkpoint computes well in float16; None if it was never probed."""
    stored = _read("float16").get(_key(fingerprint))
    return stored if isinstance(stored, bool) else None


def store_float16_answer(fingerprint: str, answer: bool) -> Path:
    """Store whether a checkpoint computes well in float16.

    Raises:
        OSError: the file cannot be written.
    """
    return _write("float16", _key(fingerprint), answer)


def _path() -> Path:
    return home_dir() / "measurements.json"


def _key(what: str) -> str:
    return f"{what}, MLX {_mlx_version()}, magistral-mlx {__version__}"


@cache
def _mlx_version() -> str:
    return importlib.metadata.version("mlx")


def _read(section: str) -> dict[str, Any]:
    values = read_stored(_path()).get(section)
    return values if isinstance(values, dict) else {}


def _write(section: str, key: str, value: Any) -> Path:
    path = _path()
    store_values(path, {section: _read(section) | {key: value}})
    return path


def read_stored(path: Path) -> dict[str, Any]:
    """Read a file of stored values; empty if it is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def store_values(path: Path, values: dict[str, Any]) -> None:
    """Store values beside the others of the file, in place of earlier ones of the same names.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(read_stored(path) | values, indent=1), encoding="utf-8")
    partial.replace(path)
