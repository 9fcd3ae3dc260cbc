"""`magistral-mlx traces`: statistics of recorded exchanges, or of an evaluation's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.params import FILE
from magistral_mlx.files import user_path

if TYPE_CHECKING:
    from rich.table import Table

# Label of a row, key of its percentiles, and format of its values.
_ROWS = (
    ("prompt tokens", "prompt_tokens", "{:,.0f}"),
    ("thinking tokens", "thinking_tokens", "{:,.0f}"),
    ("answer tokens", "answer_tokens", "{:,.0f}"),
    ("waited", "waited_seconds", "{:.2f} s"),
    ("first token", "first_token_seconds", "{:.2f} s"),
    ("all of it", "total_seconds", "{:.2f} s"),
    ("prefill", "prefill_tokens_per_second", "{:,.1f}/s"),
    ("decode", "decode_tokens_per_second", "{:,.1f}/s"),
)


@click.command()
@click.argument("folder", type=FILE, metavar="DIR_OR_LOG")
@click.option("--json", "as_json", is_flag=True, help="Print all statistics as JSON.")
@click.option(
    "--plot", type=FILE, metavar="FILE", help="Draw charts into a .png, .svg or .pdf file."
)
def traces(folder: str, as_json: bool, plot: str | None) -> None:
    """Summarise the traces that `magistral-mlx serve --traces DIR` wrote, or an evaluation's logs.

    Of an evaluation, `magistral-mlx eval` or `inspect eval`, it shows how right answers were
    thought, and wrong ones: lengths, loops, changes of language, and after what share of the
    thinking the answer was first stated.
    """
    from magistral_mlx.cli.traces_evaluation import find_evaluation, show_evaluation
    from magistral_mlx.server import traces as trace_files

    path = user_path(folder)
    if logs := find_evaluation(path):
        show_evaluation(logs, user_path(plot) if plot else None, as_json=as_json)
        return
    recorded = trace_files.read_traces(path)
    if recorded.damaged:
        names = ", ".join(recorded.damaged[:3])
        click.echo(f"{len(recorded.damaged)} files are no traces: {names}.", err=True)
    if plot:
        from magistral_mlx.cli.traces_plot import draw

        draw(recorded, user_path(plot))
        click.echo(f"drawn into {plot}.", err=True)
    if as_json:
        click.echo(trace_files.as_json(recorded))
    else:
        _show(trace_files.summarise(recorded))


def _show(facts: dict[str, Any]) -> None:
    from magistral_mlx.cli.terminal import print_wide

    for line in _lines(facts):
        click.echo(line)
    if facts["answers"]:
        print_wide(_table(facts["percentiles"]))


def _lines(facts: dict[str, Any]) -> list[str]:
    failed = sum(facts["failed"].values())
    lines = [
        f"{facts['exchanges']:,} exchanges, {facts['answers']:,} answers"
        + (f", {failed:,} failed ({_counts(facts['failed'])})" if failed else "")
    ]
    if not facts["answers"]:
        return lines
    tokens = facts["tokens"]
    lines += [
        f"from {facts['from'][:19]} to {facts['to'][:19]} UTC",
        f"endpoints: {_counts(facts['endpoints'])}",
        f"models: {_counts(facts['models'])}",
        f"ended by: {_counts(facts['finish_reasons'])}",
        f"tokens: {tokens['prompt']:,} of prompts ({tokens['cached']:,} of them cached), "
        f"{tokens['thinking']:,} of thinking, {tokens['answer']:,} of answers",
        f"thinking: {facts['thought']:,} answers thought"
        + (f", {facts['thinking_share']:.0%} of all tokens" if facts["thinking_share"] else "")
        + f"; {facts['loops']:,} loops found, {facts['budgets_spent']:,} budgets spent",
    ]
    return lines


def _table(percentiles: dict[str, dict[str, float | None]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("an answer")
    for name in next(iter(percentiles.values())):
        table.add_column(name, justify="right")
    for label, name, style in _ROWS:
        values = percentiles[name].values()
        table.add_row(label, *("–" if value is None else style.format(value) for value in values))
    return table


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counted.items())
