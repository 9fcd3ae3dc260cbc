"""Progress bars on stderr, where stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from magistral_mlx.memory.plan import Plan
    from magistral_mlx.runtime.progress import LoadProgress, OnProgress

_LABELS = {"download": "downloading", "weights": "loading"}


@contextmanager
def load_bar() -> Iterator[OnProgress | None]:
    """A bar of bytes done and in all, gone when it is done; None where nobody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(_LABELS["weights"], total=None)

        def show(progress: LoadProgress) -> None:
            bar.update(
                task,
                description=_LABELS[progress.stage],
                completed=progress.done,
                total=progress.total,
            )

        yield show


def warn_if_short(plan: Plan) -> None:
    """Say on stderr, before the model is loaded, that less memory is free than it will need."""
    if plan.warning:
        click.echo(f"magistral-mlx: {plan.warning}", err=True)
