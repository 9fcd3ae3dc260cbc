"""`magistral-mlx traces` of an evaluation's logs: how right and wrong answers were thought."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.terminal import print_wide
from magistral_mlx.requirements import check_extra

if TYPE_CHECKING:
    from rich.table import Table

    from magistral_mlx.evaluation.traces import EvaluationTrace

_GROUPS = ("all", "right", "wrong")


def show_evaluation(runs: list[list[Path]], plot: Path | None, *, as_json: bool) -> None:
    """Print what the logs tell of the thinking, as tables or JSON, and draw it.

    Raises:
        MissingExtra: Inspect is not installed.
        EvaluationError: a file that is no log.
    """
    from rich.console import Console

    from magistral_mlx.evaluation.traces import answer_facts, read_evaluations, summarise_evaluation

    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    with console.status("reading") as status:
        traces = read_evaluations(runs, lambda log: status.update(f"reading {log.name}"))
    if plot:
        from magistral_mlx.cli.traces_plot import draw_evaluation

        draw_evaluation(traces, plot)
        click.echo(f"drawn into {plot}.", err=True)
    facts = [summarise_evaluation(trace) for trace in traces]
    if as_json:
        each = [[answer_facts(each) for each in trace.answers] for trace in traces]
        pairs = zip(facts, each, strict=True)
        click.echo(json.dumps({"evaluations": [one | {"traces": some} for one, some in pairs]}))
        return
    for n, (trace, summary) in enumerate(zip(traces, facts, strict=True)):
        if n:
            click.echo()
        for line in _lines(trace, summary):
            click.echo(line)
        print_wide(_table(summary["answers"]))


def find_evaluation(path: Path) -> list[list[Path]]:
    """Return the logs of each evaluation that a user means; none if the folder holds others."""
    from magistral_mlx.evaluation.traces import candidate_logs, newest_logs

    found = candidate_logs(path)
    if found:
        check_extra("traces of an evaluation", "eval", "inspect_ai", "py3langid")
    return newest_logs(found)


def _lines(trace: EvaluationTrace, summary: dict[str, Any]) -> list[str]:
    every = summary["answers"]["all"]
    failed = f", {summary['failed']:,} failed" if summary["failed"] else ""
    lines = [f"{trace.task}, {trace.model}: {every['count']:,} answers{failed}"]
    if any(each.answer.estimated for each in trace.answers):
        lines.append("tokens of thinking are a share by characters: the server did not count them")
    letters = sum(every["languages"].values())
    if len(every["languages"]) > 1:
        shares = ", ".join(f"{name} {n / letters:.0%}" for name, n in every["languages"].items())
        lines.append(f"languages of the thinking: {shares}")
    return lines


def _table(groups: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in _GROUPS:
        table.add_column(name, justify="right")
    rows = [
        ("answers", *(f"{groups[name]['count']:,}" for name in _GROUPS)),
        ("thinking tokens", *(_median(groups[name]["thinking_tokens"]) for name in _GROUPS)),
        ("answer tokens", *(_median(groups[name]["answer_tokens"]) for name in _GROUPS)),
        ("truncated", *(_share(groups[name], "truncated") for name in _GROUPS)),
        ("looping", *(_share(groups[name], "looped") for name in _GROUPS)),
        ("switched language", *(_share(groups[name], "switched") for name in _GROUPS)),
        (
            "stated while thinking",
            *(_share(groups[name], "stated_while_thinking") for name in _GROUPS),
        ),
        ("  after this share of it", *(_reached(groups[name]["reached"]) for name in _GROUPS)),
    ]
    for row in rows:
        table.add_row(*row)
    return table


def _median(values: dict[str, float | None]) -> str:
    """The median, and the 90th percentile in brackets."""
    if values["p50"] is None:
        return "–"
    return f"{values['p50']:,.0f} ({values['p90']:,.0f})"


def _reached(values: dict[str, float | None]) -> str:
    if values["p50"] is None:
        return "–"
    return f"{values['p50']:.0%} ({values['p90']:.0%})"


def _share(group: dict[str, Any], name: str) -> str:
    return f"{group[name]:,} ({group[name] / group['count']:.0%})" if group["count"] else "–"
