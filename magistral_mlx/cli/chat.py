"""`magistral-mlx chat`: a conversation on a terminal."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from magistral_mlx.cli.generation import generation_options, options_of, system_text, with_system
from magistral_mlx.cli.loading import (
    chosen_model,
    load_options,
    loading_options,
    model_argument,
    open_model,
)
from magistral_mlx.cli.params import FILE, command, option
from magistral_mlx.cli.process import quick_imports
from magistral_mlx.files import user_path

# Options that a terminal has no use for: nobody answers calls of tools there, and nothing shows
# several answers or the probabilities of tokens.
_WITHOUT = (
    *("tools", "tool_choice", "strict_tools", "parallel_tool_calls"),
    *("n", "logprobs", "top_logprobs"),
)


@command()
@generation_options(without=_WITHOUT, defaults={"overflow": "drop"})
@option("--load", "file", type=FILE, metavar="FILE", help="Saved conversation to go on with.")
@model_argument
@loading_options(without=("parallel",))
def chat(**options: Any) -> None:
    """Talk with MODEL. Type /help for the commands."""
    name = chosen_model(options)
    with quick_imports():
        from magistral_mlx.cli.chatting.commands import COMMANDS, run_command
        from magistral_mlx.cli.chatting.keys import history_file, interrupts, quiet_terminal
        from magistral_mlx.cli.chatting.session import ChatSession

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "chat needs a terminal. In a pipe or a script use `magistral-mlx generate -`."
        )
    settings = options_of(options)
    system = system_text(options)
    loading = load_options(options)
    paths = {name: command.path for name, command in COMMANDS.items()}
    with quiet_terminal(), open_model(name, loading) as magistral:
        conversation = magistral.chat(options=with_system(settings, system, magistral))
        if options["file"]:
            conversation.load(user_path(options["file"]))
        session = ChatSession(magistral, conversation, history_file(), run_command, paths)
        if options["file"]:
            session.file = user_path(options["file"]).resolve()
            session.show_history()
        with interrupts(lambda: None):  # between two inputs there is nothing to stop
            asyncio.run(session.run())
