"""`magistral-mlx chat`: a conversation on a terminal."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.imports import quick_imports
from magistral_mlx.cli.loading import loading_options, open_model
from magistral_mlx.cli.thinking import parse_thinking

if TYPE_CHECKING:
    from magistral_mlx.api.conversation import Conversation
    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.api.options import Options


@click.command()
@click.option(
    "--model",
    metavar="NAME_OR_DIR",
    help="A folder, a hub name, or 'demo'. Default: your 4-bit conversion, else one found here.",
)
@click.option("--load", "file", metavar="FILE", help="Go on with a saved conversation.")
@click.option("--max-tokens", type=int, help="Tokens of an answer at most. Default: what fits.")
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=0.95, show_default=True)
@click.option(
    "--thinking",
    default="on",
    metavar="on|off|TOKENS",
    show_default=True,
    help="Think first, answer at once, or think for so many tokens at most.",
)
@click.option("--system", metavar="TEXT", help="A system prompt, taken literally.")
@click.option("--system-file", metavar="FILE", help="One from a file; its [THINK] part counts.")
@click.option("--no-system", is_flag=True, help="Send no system prompt.")
@click.option("--image-tokens", type=int, help="Scale images down to so many tokens each.")
@click.option("--images", type=int, default=1, show_default=True, help="Images to plan for.")
@click.option(
    "--speculation",
    type=click.Choice(["auto", "off", "ngram", "draft"]),
    default="auto",
    show_default=True,
    help="Check guesses, several tokens a pass, where that is faster. It changes no answer.",
)
@loading_options
def chat(**options: Any) -> None:
    """Talk with the model. Type /help for the commands."""
    with quick_imports():
        from magistral_mlx.cli.chatting.keys import history_file, interrupts, quiet_terminal
        from magistral_mlx.cli.chatting.room import Room

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "chat needs a terminal. In a pipe or a script use `magistral-mlx generate -`."
        )
    settings = _settings(options)
    with quiet_terminal(), open_model(options, options["images"]) as magistral:
        conversation = _conversation(magistral, settings, options)
        room = Room(magistral, conversation, history_file())
        if options["file"]:
            room.show_history()
        with interrupts(lambda: None):  # between two inputs there is nothing to stop
            asyncio.run(room.run())


def _settings(options: dict[str, Any]) -> Options:
    """Check the options before the model is loaded."""
    from magistral_mlx.api.options import DEFAULT, Options

    given = [name for name in ("system", "system_file", "no_system") if options[name]]
    if len(given) > 1:
        raise click.UsageError("give only one of --system, --system-file and --no-system.")
    taken = ("max_tokens", "temperature", "top_p", "image_tokens", "speculation")
    return Options(
        **{name: options[name] for name in taken},
        thinking=parse_thinking(options["thinking"]),
        system=None if options["no_system"] else options["system"] or DEFAULT,
        overflow="drop",
    )


def _conversation(magistral: Magistral, settings: Options, options: dict[str, Any]) -> Conversation:
    if options["system_file"]:
        from dataclasses import replace

        from magistral_mlx.chat.system import system_from_file

        system = system_from_file(options["system_file"], thinks=magistral.tokenizer.thinks)
        settings = replace(settings, system=system)
    conversation = magistral.chat(options=settings)
    if options["file"]:
        conversation.load(Path(options["file"]).expanduser())
    return conversation
