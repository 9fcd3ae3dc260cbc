"""`magistral-mlx models`: what is on this machine, where, and how large."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from magistral_mlx.library import FoundModel


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def models(as_json: bool) -> None:
    """List the models on this machine that this runtime can run."""
    from magistral_mlx.errors import ModelNotFound
    from magistral_mlx.library import default_model, find_models

    found = find_models()
    if as_json:
        for model in found:
            click.echo(json.dumps(_facts(model)))
        return
    if found:
        _show(found)
    try:
        click.echo(f"\ngenerate takes {default_model()} unless --model names another.", err=True)
    except ModelNotFound as error:
        click.echo(str(error), err=True)


def _show(found: list[FoundModel]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "from", "bits", "images", "size", "folder", box=None, pad_edge=False)
    for model in found:
        name = model.name if model.complete else f"{model.name} (damaged or incomplete)"
        table.add_row(
            name,
            model.source,
            str(model.bits or 16),
            "yes" if model.has_vision else "no",
            f"{model.size_bytes / 1e9:.2f} GB",
            str(model.path),
        )
    # Into a pipe a line is a model, however long its folder is.
    Console(width=None if Console().is_terminal else 1000).print(table)


def _facts(model: FoundModel) -> dict[str, object]:
    return {
        "name": model.name,
        "source": model.source,
        "path": str(model.path),
        "size_bytes": model.size_bytes,
        "bits": model.bits,
        "has_vision": model.has_vision,
        "complete": model.complete,
        "problem": model.problem,
    }
