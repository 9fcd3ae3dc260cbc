"""The plan as a person reads it: a bar of memory, and tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from magistral_mlx.cli.terminal import print_wide
from magistral_mlx.memory.plan import gib

_PARTS = (
    ("weights", "blue"),
    ("adapters", "green"),
    ("vision", "cyan"),
    ("cache", "magenta"),
    ("workspace", "yellow"),
    ("headroom", "bright_black"),
)
_WIDTH = 60


def show(facts: dict[str, Any]) -> None:
    """One machine."""
    console = _console()
    machine = facts["machine"]
    available = machine["available"]
    free = f", {gib(available)} free now" if available is not None else ""
    console.print(f"[bold]{escape(facts['model'])}[/bold]", highlight=False)
    console.print(
        f"on {machine['name']}: {gib(machine['memory'])} of memory, {gib(machine['limit'])} "
        f"for the model{free}",
        highlight=False,
    )
    console.print()
    if facts["fits"]:
        console.print(_bar(facts["bytes"], machine["limit"]))
        console.print(_legend(facts["bytes"]))
        console.print(_choice(facts), highlight=False)
    else:
        why = escape(facts["why"])
        console.print(f"[bold red]does not fit[/bold red]: {why}", highlight=False)
    console.print()
    print_wide(_caches(facts))
    _show_computed(console, facts)


def show_machines(rows: list[dict[str, Any]]) -> None:
    """A line a machine."""
    schemes = list(rows[0]["longest_context"])
    table = Table("machine", "for the model", "default", "total", box=None, pad_edge=False)
    for scheme in schemes:
        table.add_column(f"KV {scheme}", justify="right")
    for facts in rows:
        chosen = f"{facts['context']:,} at {facts['kv']}" if facts["fits"] else "does not fit"
        table.add_row(
            facts["machine"]["name"],
            gib(facts["machine"]["limit"]),
            chosen,
            gib(facts["bytes"]["total"]) if facts["fits"] else "-",
            *(_count(facts["longest_context"][scheme]) for scheme in schemes),
        )
    console = _console()
    console.print(f"[bold]{escape(rows[0]['model'])}[/bold]", highlight=False)
    print_wide(table)
    console.print("Under KV: the longest context that fits with such a cache, in tokens.")
    console.print(
        "The GPU's share of the memory is that of macOS 15; macOS 26 gives more, as in "
        "--machine '32GB macOS 26'.",
        highlight=False,
    )


def _console() -> Console:
    """Into a pipe a line stays a line, however long it is."""
    return Console(width=None if Console().is_terminal else 1000)


def _bar(sizes: dict[str, int], limit: int) -> Text:
    bar = Text()
    used = 0
    for part, colour in _PARTS:
        end = round(min(limit, used + sizes[part]) / limit * _WIDTH)
        start = round(used / limit * _WIDTH)
        bar.append(("░" if part == "headroom" else "█") * (end - start), style=colour)
        used += sizes[part]
    return bar


def _legend(sizes: dict[str, int]) -> Text:
    legend = Text()
    for part, colour in _PARTS:
        if sizes[part]:
            legend.append("■ ", style=colour)
            legend.append(f"{part} {gib(sizes[part])}   ")
    return legend


def _choice(facts: dict[str, Any]) -> str:
    images = f", {facts['images']} image(s) of the largest size" if facts["images"] else ""
    kept = facts["bytes"]["kept"]
    alone = "; --images 0 plans for text alone" if facts["images"] else ""
    return (
        f"[bold]{facts['context']:,} tokens of context, KV cache {facts['kv']}[/bold], prompts in "
        f"chunks of {facts['prefill_chunk']}{images}: {gib(facts['bytes']['total'])} in all\n"
        f"({facts['why']}{alone})"
        + (f"\nUp to {gib(kept)} of the headroom keep what was read before." if kept else "")
    )


def _caches(facts: dict[str, Any]) -> Table:
    context = f"{facts['kv_bytes_context']:,} tokens take"
    table = Table("KV cache (keys/values)", context, "longest context that fits")
    for scheme, tokens in facts["longest_context"].items():
        name = f"{scheme} bits" if "/" in scheme else "full precision"
        table.add_row(name, gib(facts["kv_bytes"][scheme]), _tokens(tokens))
    return table


def _show_computed(console: Console, facts: dict[str, Any]) -> None:
    computed = facts.get("computed") or {}
    seconds = computed.get("prefill_seconds")
    empty = computed.get("decode_tokens_per_second")
    full = computed.get("decode_tokens_per_second_full")
    figures = []
    if seconds:
        figures.append(f"a prompt that fills the context takes {_duration(seconds)} at least")
    if empty and full:
        figures.append(
            f"decoding reaches {empty:.1f} tokens/s at most while the cache is empty, "
            f"{full:.1f} once the context is full"
        )
    if figures:
        words = "; ".join(figures)
        origin = (
            "the speeds that `doctor --check` measured here"
            if computed["measured"]
            else "the chip's published figures, not measured"
        )
        console.print(f"Computed from {origin}: {words}.", highlight=False)
    if computed.get("missing"):
        console.print(computed["missing"], highlight=False)


def _tokens(count: int) -> str:
    return f"{count:,} tokens" if count else "does not fit"


def _count(count: int) -> str:
    return f"{count:,}" if count else "-"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} s"
