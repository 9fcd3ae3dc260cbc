"""The model of a command: its options, its loading, and the progress bar meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.cli.params import MODEL, declared, given, option
from magistral_mlx.cli.process import quick_imports
from magistral_mlx.cli.terminal import say

if TYPE_CHECKING:
    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.mcp.config import ServerSpec
    from magistral_mlx.memory.plan import Plan
    from magistral_mlx.runtime.progress import LoadProgress, OnProgress

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LABELS = {"download": "downloading", "weights": "loading"}


def loading_options(
    *names: str, without: tuple[str, ...] = (), defaults: Mapping[str, str] | None = None
) -> Callable[[_Command], _Command]:
    """Give a command the options of loading, or those of them that are named.

    Args:
        defaults: those of the command where they differ from the options'.
    """
    return declared(
        LoadOptions,
        *names,
        without=without,
        section="Loading",
        defaults=defaults,
        flags={"context": ("-c",)},
    )


def model_option(command: _Command) -> _Command:
    """Give a command -m and --model."""
    return option(
        "-m",
        "--model",
        "model",
        type=MODEL,
        metavar="NAME_OR_DIR",
        section="Loading",
        help="A folder, a hub name, or 'demo'.  [default: your 4-bit conversion, else one found]",
    )(command)


def model_argument(command: _Command) -> _Command:
    """Give a command its model as an argument, or by -m and --model; see `chosen_model`."""
    argument = click.argument("model_argument", metavar="[MODEL]", required=False, type=MODEL)
    return model_option(argument(command))


def chosen_model(options: dict[str, Any]) -> str | None:
    """The model that a command with `model_argument` names; None for the default one."""
    argument, named = options.pop("model_argument"), options["model"]
    if argument is not None and named is not None and argument != named:
        raise click.UsageError("give the model once, as MODEL or with --model.")
    return named if argument is None else argument


def load_options(options: dict[str, Any], **others: Any) -> LoadOptions:
    """The options of loading among a command's own, --split included, and `others` over them.

    Raises:
        InvalidOption: two that do not go together.
    """
    split = {} if options.get("split") is None else {"split": options["split"]}
    return LoadOptions(**given(options, LoadOptions) | split | others)


def open_model(name: str | None, options: LoadOptions) -> Magistral:
    """Load a model, with a bar on stderr, and a warning if memory is short.

    Raises:
        MagistralError: what `Magistral.load` raises.
    """
    with quick_imports():
        from magistral_mlx.api.magistral import Magistral

    with load_bar() as on_progress, ExitStack() as quick:

        def on_plan(plan: Plan) -> None:
            warn_if_short(plan)
            # What may take hours, a download, is over; the tokenizer's imports are still to come.
            quick.enter_context(quick_imports())

        return Magistral.load(name, options=options, on_plan=on_plan, on_progress=on_progress)


def say_last_notes(magistral: Magistral) -> None:
    """Say on stderr what went wrong when a model was closed: prompts are kept until then."""
    for note in magistral.session.last_notes:
        say(note)


@contextmanager
def load_bar() -> Iterator[OnProgress | None]:
    """Show a bar of bytes done and in all on stderr; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(_LABELS["weights"], total=None)

        def show(progress: LoadProgress) -> None:
            bar.update(
                task,
                description=_LABELS[progress.stage],
                completed=progress.done,
                total=progress.total,
            )

        yield show


def warn_if_short(plan: Plan) -> None:
    """Say on stderr, before the model is loaded, that less memory is free than it will need."""
    if plan.warning:
        say(plan.warning)


def mcp_servers(file: str | None) -> tuple[ServerSpec, ...]:
    """The MCP servers that the file of --mcp names; none without one.

    Raises:
        MagistralError: the file cannot be read, or the extra is not installed.
    """
    if file is None:
        return ()
    from magistral_mlx.mcp.config import read_servers
    from magistral_mlx.requirements import check_extra

    check_extra("--mcp", "mcp", "mcp")
    return read_servers(file)


def waiting_for(servers: Sequence[str]) -> str:
    """A line that names the MCP servers that a command waits for."""
    return f"waiting for the MCP server{'s' * (len(servers) > 1)} {', '.join(servers)} (--mcp)."
