"""`magistral-mlx eval`: benchmarks of answers, beside the published figures."""

from __future__ import annotations

from typing import Any

import click

from magistral_mlx.cli.params import SectionedCommand


class _EvalCommand(SectionedCommand):
    """`eval TASK…`; `eval quality A B` is a command of its own."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        if args[:1] == ["quality"]:
            from magistral_mlx.cli.eval_quality import quality

            return quality.make_context(f"{info_name} quality", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_EvalCommand)
@click.argument("tasks", metavar="TASK…", nargs=-1)
def eval(tasks: tuple[str, ...]) -> None:
    """Ask a model the questions of benchmarks, and show its scores beside the published ones."""
