"""Pass costs of this machine: measured by `magistral-mlx bench`, else the backend's estimate.

A file in the user's folder stores measurements by machine, model, and versions of MLX and of this
package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magistral_mlx import __version__
from magistral_mlx.backend import backend, mx
from magistral_mlx.engine.speculate.costs import PassCosts
from magistral_mlx.measurements import read_stored, store_values
from magistral_mlx.paths import home_dir


def pass_costs(machine: str, decoder_bytes: int) -> PassCosts:
    """Return the costs for a model on `machine`, identified by the bytes of its decoder."""
    measured = read_stored(_path()).get(_key(machine, decoder_bytes))
    return _checked(measured) or PassCosts(backend().pass_costs)


def store(machine: str, decoder_bytes: int, costs: PassCosts) -> Path:
    """Store measured costs and return the path of the file.

    Raises:
        OSError: the file cannot be written.
    """
    path = _path()
    points = {"short": costs.points, "long": costs.long} if costs.long else costs.points
    store_values(path, {_key(machine, decoder_bytes): points})
    return path


def smoothed(rows: Sequence[int], seconds: Sequence[float]) -> PassCosts:
    """Compute costs from measured seconds; `rows` begins with 1.

    The result never falls with the number of rows.
    """
    points, highest = [], 1.0
    for count, taken in zip(rows, seconds, strict=True):
        highest = max(highest, taken / seconds[0])
        points.append((count, highest))
    return PassCosts(tuple(points))


def _path() -> Path:
    return home_dir() / "pass-costs.json"


def _key(machine: str, decoder_bytes: int) -> str:
    version = mx.__version__  # type: ignore[attr-defined]  # the stub lacks it
    return f"{machine}, MLX {version}, magistral-mlx {__version__}, {decoder_bytes} bytes"


def _checked(stored: Any) -> PassCosts | None:
    """Return stored points as costs, or None if they are invalid."""
    if not isinstance(stored, dict):
        return PassCosts(points) if (points := _points(stored)) else None
    short, long = _points(stored.get("short")), _points(stored.get("long"))
    return PassCosts(short, long) if short and long else None


def _points(stored: Any) -> tuple[tuple[int, float], ...] | None:
    try:
        pairs = tuple((int(rows), float(cost)) for rows, cost in stored)
    except (TypeError, ValueError):
        return None
    rows = [count for count, _ in pairs]
    rises = rows == sorted(set(rows)) and all(cost >= 1 for _, cost in pairs)
    return pairs if pairs[:1] == ((1, 1.0),) and rises else None
