"""`magistral-mlx eval quality`: how far two models differ on the same text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.loading import load_bar
from magistral_mlx.cli.params import FILE, INTEGER, MODEL, SIZE, command, option
from magistral_mlx.cli.plots import check_plot
from magistral_mlx.cli.process import kept_awake
from magistral_mlx.cli.terminal import print_wide, say
from magistral_mlx.files import user_path
from magistral_mlx.option_spec import Integer, Size

if TYPE_CHECKING:
    from rich.table import Table

    from magistral_mlx.evaluation.quality.measure import ComparedPair, OnStep, QualityRun
    from magistral_mlx.evaluation.quality.summary import QualitySummary


@command()
@click.argument("first", metavar="A", type=MODEL)
@click.argument("others", metavar="B…", nargs=-1, required=True, type=MODEL)
@option(
    "--text",
    "texts",
    multiple=True,
    type=FILE,
    metavar="FILE",
    help="Text to compare on, or 'default' for the text that ships. Give it again for more.  "
    "[default: default]",
)
@option(
    "-c",
    "--context",
    type=INTEGER(Integer(16)),
    default=40_960,
    metavar="TOKENS",
    help="Longest sequence; a longer text is cut.  [default: 40,960, or the models' longest]",
)
@option(
    "--tokens",
    type=INTEGER(Integer(16)),
    default=81_920,
    metavar="TOKENS",
    help="Tokens at most, of all files alike.  [default: 81,920]",
)
@option(
    "--memory-limit",
    type=SIZE(Size(64 * 10**6)),
    metavar="SIZE",
    help="Memory to stay within, as in 20GB.  [default: what the machine recommends]",
)
@option(
    "--plot",
    type=FILE,
    metavar="FILE",
    help="Draw divergence and agreement by position into a .png, .svg or .pdf file.",
)
@option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def quality(
    first: str,
    others: tuple[str, ...],
    texts: tuple[str, ...],
    context: int,
    tokens: int,
    memory_limit: int | None,
    plot: str | None,
    as_json: bool,
) -> None:
    """Compare the next-token distributions of model B, or several, with those of A.

    A model is a folder, a GGUF file or a name, and may be followed by options: demo@kv=4/4, or
    NAME@kv=8/8,dtype=float16,adapter=DIR,tokenizer=FILE. Without a name, as in @kv=4/4, it is A's.
    One model at a time is in memory. After Ctrl-C the same command goes on where it was.
    """
    from magistral_mlx.api.models import download_progress
    from magistral_mlx.evaluation.quality.measure import QualityRun
    from magistral_mlx.evaluation.quality.text import read_text
    from magistral_mlx.evaluation.quality.variants import ComparedModel, Variant

    if plot:
        check_plot(user_path(plot))
    variant = Variant.parse(first)
    variants = [variant, *(Variant.parse(other, variant) for other in others)]
    with load_bar() as on_progress:
        downloading = download_progress(on_progress)
        models = [ComparedModel.open(each, downloading) for each in variants]
    text = read_text(texts, models, context, tokens)
    if text.left_out:
        say(f"{text.left_out:,} tokens of the text are left out; give more --tokens for them.")
    run = QualityRun(models, text, memory_limit)
    try:
        with kept_awake(), _progress() as on_step:
            pairs = run.run(on_step)
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here.")
        raise
    if plot:
        from magistral_mlx.cli.eval_quality_plot import draw_quality

        draw_quality(run.models[0].label, pairs, user_path(plot))
        click.echo(f"drawn into {plot}.", err=True)
    facts = _facts(run, pairs)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _show(facts, pairs)


@contextmanager
def _progress() -> Iterator[OnStep | None]:
    """Show what is read, and its share, on stderr; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        yield show


def _facts(run: QualityRun, pairs: list[ComparedPair]) -> dict[str, Any]:
    """All figures as JSON types."""
    from magistral_mlx.evaluation.quality.summary import summarise

    found = []
    for pair in pairs:
        total, bands = summarise(pair.figures)
        found.append(
            {
                "model": pair.model.label,
                "total": asdict(total),
                "positions": [asdict(band) for band in bands],
            }
        )
    plans = [
        {
            "model": model.label,
            "folder": str(model.checkpoint.folder),
            "dtype": model.dtype,
            "kv": plan.scheme.name,
            "peak_bytes": plan.peak.total,
        }
        for model, plan in zip(run.models, run.plans, strict=True)
    ]
    return {
        "models": plans,
        "sequences": [len(sequence) for sequence in run.text.sequences],
        "left_out": run.text.left_out,
        "against": run.models[0].label,
        "compared": found,
    }


def _show(facts: dict[str, Any], pairs: list[ComparedPair]) -> None:
    from magistral_mlx.evaluation.quality.summary import summarise

    lengths = facts["sequences"]
    click.echo(
        f"{sum(lengths):,} tokens in {len(lengths)} sequence{'s' * (len(lengths) > 1)}; divergence "
        f"of next-token distributions from those of {facts['against']}, in nats"
    )
    for pair in pairs:
        total, bands = summarise(pair.figures)
        click.echo()
        print_wide(_table(pair.model.label, [*bands, *([total] if len(bands) > 1 else [])]))


def _table(label: str, rows: list[QualitySummary]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column(label)
    for name in ("tokens", "mean KL", "99 %", "same top", "perplexity", "of A"):
        table.add_column(name, justify="right")
    for n, row in enumerate(rows):
        is_total = n == len(rows) - 1 and len(rows) > 1
        table.add_row(
            "all" if is_total else _band(row),
            f"{row.tokens:,}",
            f"{row.divergence:.5f} ± {row.error:.5f}",
            f"{row.high:.4f}",
            f"{row.agreement:.2%}",
            _number(row.other),
            _number(row.first),
        )
    return table


def _band(row: QualitySummary) -> str:
    """The positions of a row, as in 2k-16k."""
    start = f"{row.start // 1024}k" if row.start else "0"
    return f"positions {start} on" if row.end is None else f"positions {start}-{row.end // 1024}k"


def _number(perplexity: float) -> str:
    return f"{perplexity:.4f}" if perplexity < 1e4 else f"{perplexity:.3e}"
