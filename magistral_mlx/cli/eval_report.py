"""The tables of `magistral-mlx eval`: scores, lengths, and two runs by question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.terminal import print_wide, say

if TYPE_CHECKING:
    from rich.table import Table

_MODELS = ("Small 1.2", "Medium 1.2", "Small 1.1")


def show(facts: dict[str, Any]) -> None:
    """Print a run's scores beside the published ones, and the lengths of its answers."""
    click.echo(_settings(facts["settings"]))
    tasks = facts["tasks"]
    if any(task["answers"] for task in tasks):
        print_wide(_scores(tasks))
        print_wide(_answers(tasks))
        if any(task["thinking_estimated"] for task in tasks):
            click.echo("~ the server does not count thinking: its share by characters.")
    for task in tasks:
        if task["failed"]:
            say(
                f"{task['task']}: {task['failed']:,} answers failed "
                f"({task['failure'].rstrip('.')}). The same command asks for them again."
            )
    click.echo(f"run: {facts['run']}  (inspect view --log-dir {facts['run']})")
    if not facts["complete"]:
        click.echo("not all is answered: the same command goes on.")


def show_comparison(facts: dict[str, Any]) -> None:
    """Print two runs by question, task by task."""
    click.echo(f"A: {facts['first']}")
    click.echo(f"B: {facts['second']}")
    table = _table("task", "questions", "A", "B", "B - A", "95 %", "B better", "B worse", "p")
    for task in facts["tasks"]:
        table.add_row(
            task["task"],
            f"{task['questions']:,}",
            _percent(task["first"]),
            _percent(task["second"]),
            f"{100 * task['difference']:+.1f}",
            f"{100 * task['low']:+.1f} to {100 * task['high']:+.1f}",
            str(task["better"]),
            str(task["worse"]),
            f"{task['p']:.3g}",
        )
    print_wide(table)
    click.echo("p: exact sign-flip test over the questions that both answered.")


def _settings(settings: dict[str, Any]) -> str:
    sampling = settings["sampling"]
    parts = [settings["model"]]
    if "server" in settings:
        parts.append(f"at {settings['server']}")
    if "context" in settings:
        parts.append(f"context {settings['context']:,}, cache {settings['kv']}")
    parts.append(f"temperature {sampling['temperature']:g}, top-p {sampling['top_p']:g}")
    if "max_tokens" in sampling:
        parts.append(f"up to {sampling['max_tokens']:,} tokens")
    if "reasoning_tokens" in sampling:
        parts.append(f"up to {sampling['reasoning_tokens']:,} of thinking")
    if "reasoning_effort" in sampling:
        parts.append("without thinking")
    return ", ".join(parts)


def _scores(tasks: list[dict[str, Any]]) -> Table:
    table = _table("pass@1", "questions", "epochs", "here", "95 %", *_MODELS)
    for task in tasks:
        published = [task["published"].get(model) for model in _MODELS]
        table.add_row(
            task["task"],
            f"{task['questions']:,}",
            str(task["epochs"]),
            _percent(task["pass_at_1"]),
            "–" if task["low"] is None else f"{_percent(task['low'])} to {_percent(task['high'])}",
            *("–" if score is None else f"{score:.2f}" for score in published),
        )
    return table


def _answers(tasks: list[dict[str, Any]]) -> Table:
    table = _table(
        "an answer",
        "right",
        "tokens",
        "thinking",
        "wrong",
        "tokens",
        "thinking",
        "truncated",
        "looping",
        "read",
        "written",
    )
    for task in tasks:
        mark = "~" if task["thinking_estimated"] else ""
        table.add_row(
            task["task"],
            *(
                text
                for side in (task["right"], task["wrong"])
                for text in (
                    f"{side['answers']:,}",
                    _tokens(side["tokens"]),
                    mark + _tokens(side["thinking"]),
                )
            ),
            str(task["truncated"]),
            str(task["looping"]),
            f"{task['input_tokens']:,}",
            f"{task['output_tokens']:,}",
        )
    return table


def _table(first: str, *others: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{100 * rate:.1f}"


def _tokens(count: float | None) -> str:
    return "–" if count is None else f"{count:,.0f}"
