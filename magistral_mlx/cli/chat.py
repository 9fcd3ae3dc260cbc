"""`magistral-mlx chat`: a conversation on a terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.generation import (
    generation_options,
    names_system,
    options_of,
    system_text,
    with_system,
)
from magistral_mlx.cli.loading import (
    chosen_model,
    load_options,
    loading_options,
    mcp_servers,
    model_argument,
    open_model,
    say_last_notes,
    waiting_for,
)
from magistral_mlx.cli.machine_options import machine_options
from magistral_mlx.cli.machines import machines_of, run_on_machines
from magistral_mlx.cli.params import FILE, command, option
from magistral_mlx.cli.process import quick_imports
from magistral_mlx.cli.terminal import say
from magistral_mlx.files import user_path

if TYPE_CHECKING:
    from magistral_mlx.mcp.config import ServerSpec
    from magistral_mlx.mcp.servers import MCPServers

# Options that a terminal has no use for: tools come from MCP servers there, and nothing shows
# several answers or the probabilities of tokens.
_WITHOUT = (
    *("tools", "tool_choice", "strict_tools", "parallel_tool_calls"),
    *("n", "logprobs", "top_logprobs", "prompt_logprobs"),
)


@command()
@generation_options(without=_WITHOUT, defaults={"overflow": "drop"})
@option(
    "--mcp",
    type=FILE,
    metavar="FILE",
    help='Tools of the MCP servers in FILE ({"mcpServers": …}); each call asks first.',
)
@option(
    "--load",
    "file",
    type=FILE,
    metavar="FILE",
    help="Saved conversation to go on with, with its system prompt unless one is given.",
)
@model_argument
@loading_options(without=("parallel",))
@machine_options
def chat(**options: Any) -> int:
    """Talk with MODEL. Type /help for the commands."""
    name = chosen_model(options)
    with quick_imports():
        from magistral_mlx.api.transcript import read_transcript
        from magistral_mlx.cli.chatting.commands import COMMANDS, run_command
        from magistral_mlx.cli.chatting.keys import history_file, interrupts, quiet_terminal
        from magistral_mlx.cli.chatting.session import ChatSession

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError(
            "chat needs a terminal. In a pipe or a script use `magistral-mlx generate -`."
        )
    loading = load_options(options)
    if (machines := machines_of(options)) is not None:
        return run_on_machines(machines, [name], loading, options["split"])
    settings = options_of(options)
    system = system_text(options)
    specs = mcp_servers(options["mcp"])
    file = user_path(options["file"]) if options["file"] else None
    # Before the model is loaded: a wrong path should not cost half a minute.
    saved = None if file is None else read_transcript(file)
    paths = {name: command.path for name, command in COMMANDS.items()}
    with quiet_terminal(), open_model(name, loading) as magistral:
        settings = with_system(settings, system, magistral)
        if saved is not None and not names_system(options):
            settings = replace(settings, system=saved[1])
        conversation = magistral.chat(saved[0] if saved else (), options=settings)

        async def run(servers: MCPServers | None = None) -> None:
            history = history_file()
            session = ChatSession(magistral, conversation, history, run_command, paths, servers)
            if servers is not None:
                session.set_options(tools=tuple(tool.tool for tool in servers.tools))
                session.say(f"{len(servers.tools)} tools of MCP servers · /tools lists them")
            if file is not None:
                session.file = file.resolve()
                session.show_history()
            with interrupts(lambda: None):  # between two inputs there is nothing to stop
                await session.run()

        asyncio.run(_with_servers(specs, run))
    say_last_notes(magistral)
    return 0


async def _with_servers(
    specs: Sequence[ServerSpec], run: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    """Run a chat with the servers connected, whose stderr would be written over its screen."""
    if not specs:
        return await run()
    from magistral_mlx.mcp.servers import MCPServers

    say(waiting_for([spec.name for spec in specs]))
    with open(os.devnull, "w") as log:
        async with MCPServers(specs, log) as servers:
            await run(servers)
    return None
