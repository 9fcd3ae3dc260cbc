"""The part of `magistral-mlx doctor` that computes: `--check`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import click

from magistral_mlx.check.finding import MARKS, Finding


@dataclass(frozen=True)
class Checks:
    """The findings of `--check`, and what they are about."""

    model: str
    findings: list[Finding]
    machine: dict[str, Any]
    versions: dict[str, str | None]


def run_checks(model: str | None) -> Checks:
    """Run the checks, with the one that is under way on the terminal.

    Raises:
        MagistralError: no such model, or one that is damaged.
    """
    from pathlib import Path

    from rich.console import Console

    from magistral_mlx.bench.process import ours
    from magistral_mlx.bench.record import describe_machine, versions
    from magistral_mlx.check.run import check
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.errors import ModelNotFound
    from magistral_mlx.library import locate
    from magistral_mlx.memory.machine import this_machine

    try:
        checkpoint = Checkpoint.open(Path(locate(model)))
        name = model or checkpoint.folder.name
    except ModelNotFound:
        if model is not None:
            raise
        checkpoint, name = None, "Magistral Small at 4 bits"
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with console.status("checking") as status:
        findings = list(check(checkpoint, name, lambda what: status.update(f"checking {what}")))
    return Checks(name, findings, describe_machine(this_machine()), versions([ours()]))


def show_checks(checks: Checks) -> None:
    """Print the checks as a table."""
    from rich.table import Table
    from rich.text import Text

    from magistral_mlx.cli.terminal import print_wide

    table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
    for one in checks.findings:
        table.add_row(MARKS[one.verdict], one.what, Text(one.words), Text(one.advice))
    click.echo(f"\nChecked with {checks.model}:\n")
    print_wide(table)
