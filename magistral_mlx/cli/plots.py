"""Files of plots: their kinds, one figure with axes, and writing whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from magistral_mlx.errors import InvalidOption, StorageError
from magistral_mlx.requirements import check_extra

_KINDS = (".png", ".svg", ".pdf")


def check_plot(file: Path) -> None:
    """Check that a plot can be drawn into `file`, before long work.

    Raises:
        InvalidOption: a file of another kind.
        MissingExtra: matplotlib is not installed.
    """
    if file.suffix.lower() not in _KINDS:
        raise InvalidOption(f"a plot is drawn into {', '.join(_KINDS)}, not into {file.name}.")
    check_extra("--plot", "bench", "matplotlib")


def figure_of(size: tuple[float, float], rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure of `size` inches with its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained")


def save_figure(figure: Any, file: Path) -> None:
    """Write a figure into `file`, whole or not at all, and close it.

    Raises:
        StorageError: the file cannot be written.
    """
    from matplotlib import pyplot

    partial = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        figure.savefig(partial, dpi=150)
        partial.replace(file)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror or error}.") from error
    finally:
        partial.unlink(missing_ok=True)
        pyplot.close(figure)
