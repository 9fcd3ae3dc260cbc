"""`magistral-mlx eval quality`: how far two models differ on the same text."""

from __future__ import annotations

from magistral_mlx.cli.params import command


@command()
def quality() -> None:
    """Compare two checkpoints, recipes or cache schemes on the same text."""
