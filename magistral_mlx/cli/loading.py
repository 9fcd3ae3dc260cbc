"""The options by which a model is loaded, and loading it for commands that talk to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import click

from magistral_mlx.cli.imports import quick_imports
from magistral_mlx.cli.progress import load_bar, warn_if_short
from magistral_mlx.cli.sizes import parse_size

if TYPE_CHECKING:
    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.memory.plan import Plan

_Command = TypeVar("_Command", bound=Callable[..., Any])

_TAKEN = ("context", "kv", "dtype", "tokenizer", "draft", "cache_dir")
_OPTIONS = (
    click.option("--tokenizer", metavar="NAME_OR_FILE", help="Where to take tekken.json from."),
    click.option(
        "--draft", metavar="NAME_OR_DIR", help="A small model, same tokenizer, that guesses."
    ),
    click.option("--cache-dir", metavar="DIR", help="Keep read prompts here, for the next time."),
    click.option("--cache-size", metavar="SIZE", help="What they may take there.  [default: 10GB]"),
    click.option("--context", type=int, help="Tokens of prompt and answer. Default: what fits."),
    click.option(
        "--kv", metavar="SCHEME", help="KV cache: full, 8/8, 8/4 or 4/4. Default: what fits."
    ),
    click.option("--memory-limit", metavar="SIZE", help="Stay within this, as in 20GB."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="What to compute in. Default: what is fastest here.",
    ),
)


def loading_options(command: _Command) -> _Command:
    """Give a command these options, in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def loading(options: dict[str, Any]) -> dict[str, Any]:
    """What they say, by the names that `Magistral.load` has for it.

    Raises:
        InvalidOption: a size that is none.
    """
    sizes = {name: parse_size(options[name]) for name in ("memory_limit", "cache_size")}
    return {name: options[name] for name in _TAKEN} | sizes


def open_model(options: dict[str, Any], images: int) -> Magistral:
    """The model that a command's options name, with a bar on stderr and a warning if need be.

    Raises:
        InvalidOption: a size that is none; besides what `Magistral.load` raises.
    """
    given = loading(options)
    with quick_imports():
        from magistral_mlx.api.magistral import Magistral

    with load_bar() as on_progress, ExitStack() as quick:

        def on_plan(plan: Plan) -> None:
            warn_if_short(plan)
            # What may take hours, a download, is over; the tokenizer's imports are still to come.
            quick.enter_context(quick_imports())

        return Magistral.load(
            options["model"],
            **given,
            images=images,
            on_plan=on_plan,
            on_progress=on_progress,
        )
