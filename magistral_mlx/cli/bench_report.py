"""Report of `magistral-mlx bench` on a terminal."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from magistral_mlx.bench.process import OURS
from magistral_mlx.bench.record import unsteady
from magistral_mlx.cli.terminal import print_wide

_GIB = 1 << 30
_PIPE_WIDTH = 140


def show(facts: dict[str, Any]) -> None:
    """Tables, remarks, and the line to paste as the last one."""
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    machine = facts["machine"]
    console.print(
        f"[bold]{facts['model']}[/bold] in {facts['dtype']}, KV cache {facts['kv']}, on "
        f"{machine['name']} with {machine['memory'] / _GIB:.0f} GiB, {machine['system']}",
        highlight=False,
        soft_wrap=True,
    )
    print_wide(_table(facts["speeds"]))
    if facts["parallel"]:
        print_wide(_parallel_table(facts["parallel"]))
    limit = facts["limit"]
    reached = f"; a plain read reached {limit['reached'] / 1e9:.0f}" if limit["published"] else ""
    console.print(
        "limit: the share of what memory allows, all bytes that a token reads over "
        f"{limit['origin']}{reached}.",
        highlight=False,
        soft_wrap=True,
    )
    for remark in remarks(facts):
        console.print(remark, highlight=False, soft_wrap=True)
    console.print()
    click.echo(facts["line"])


def remarks(facts: dict[str, Any]) -> list[str]:
    """Return the caveats that the figures need."""
    peers = {speed["label"] for speed in facts["speeds"]} - {OURS}
    found = []
    if facts.get("machines", 1) > 1:
        found.append(
            f"Over {facts['machines']} machines: the limit, the peak and what disturbed are this "
            "machine's."
        )
    found += [f"Left out: {name}: {why}" for name, why in facts["left_out"].items()]
    found += [
        f"{name} gave the same first {count} tokens."
        for name, count in facts["equal_tokens"].items()
        if name in peers
    ]
    known = {speed["label"] for speed in facts["speeds"] if speed["share_of_limit"] is not None}
    if known & peers and facts["kv"] != "full":
        found.append(
            f"{', '.join(sorted(known & peers))}: full KV cache, and the share of the limit is of "
            "that."
        )
    reporting = {speed["label"] for speed in facts["speeds"] if speed["reported"]}
    if reporting:
        found.append(
            f"{', '.join(sorted(reporting))}: prefill and decode as the server reports them."
        )
    if peers and not facts["took_turns"]:
        found.append(
            "The runtimes do not fit into memory together, so they ran one after the other and "
            "took no turns: ours/theirs is of medians, without a spread."
        )
    if restless := unsteady(facts["speeds"]):
        found.append(f"Not steady: {'; '.join(restless)}.")
    if facts.get("pass_costs"):
        shown = [(rows, cost) for rows, cost in facts["pass_costs"] if rows in (2, 4, 8, 16, 32)]
        found.append(
            f"A pass over {', '.join(str(rows) for rows, _ in shown)} tokens costs "
            f"{', '.join(f'{cost:.1f}' for _, cost in shown)} times one; kept for speculation."
        )
    if facts["disturbances"]:
        found.append(f"Disturbed by: {', '.join(facts['disturbances'])}.")
    return found


def _table(speeds: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("runtime")
    for name in ("prompt", "prefill", "first token", "decode", "spread", "limit", "ours/theirs"):
        table.add_column(name, justify="right")
    table.add_column("peak", justify="right")
    for speed in sorted(speeds, key=lambda speed: speed["context"]):
        table.add_row(
            speed["label"],
            f"{speed['context']:,}",
            f"{speed['prefill']['median']:,.1f}/s",
            f"{speed['first']['median']:.2f} s",
            f"{speed['decode']['median']:.2f}/s",
            _spread(speed["decode"]),
            "-" if speed["share_of_limit"] is None else f"{speed['share_of_limit']:.0%}",
            _ratio(speed),
            "-" if speed["peak"] is None else f"{speed['peak'] / _GIB:.2f} GiB",
        )
    return table


def _parallel_table(speeds: list[dict[str, Any]]) -> Table:
    """Several requests at once."""
    table = Table(box=None, pad_edge=False)
    table.add_column("runtime")
    for name in ("at once", "prompt", "in all", "spread", "first token", "last one's"):
        table.add_column(name, justify="right")
    for speed in speeds:
        table.add_row(
            speed["label"],
            str(speed["requests"]),
            f"{speed['context']:,}",
            f"{speed['rate']['median']:,.1f}/s",
            _spread(speed["rate"]),
            f"{speed['first']['median']:.2f} s",
            f"{max(speed['first']['values']):.2f} s",
        )
    return table


def _spread(figure: dict[str, Any]) -> str:
    """Of decode; of a single value none is known."""
    return f"{figure['spread']:.0%}" if len(figure["values"]) > 1 else "-"


def _ratio(speed: dict[str, Any]) -> str:
    """Decode, ours over theirs, with its spread over the rounds where there is one."""
    ratio = speed.get("ours_over_theirs")
    if ratio is None:
        return ""
    spread = f" ({ratio['spread']:.0%})" if ratio["spread"] is not None else ""
    return f"{ratio['median']:.2f}{spread}"
