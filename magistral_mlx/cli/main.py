"""The `magistral-mlx` command: finds the subcommand, and turns errors into one line.

Each command lives in a file of its own and is imported when it is called, so `--help` is quick.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from typing import NoReturn

import click

from magistral_mlx import __version__
from magistral_mlx.errors import MagistralError
from magistral_mlx.requirements import check_platform

# Command -> its module and the line that `--help` shows.
_COMMANDS = {
    "generate": ("magistral_mlx.cli.generate", "Answer a prompt, with images if you like."),
    "chat": ("magistral_mlx.cli.chat", "Talk with the model on this terminal."),
    "serve": ("magistral_mlx.cli.serve", "Answer apps and browsers on this machine."),
    "traces": ("magistral_mlx.cli.traces", "Summarise what serve --traces wrote."),
    "convert": ("magistral_mlx.cli.convert", "Quantize a checkpoint to MLX format."),
    "plan": ("magistral_mlx.cli.plan", "Show what fits into memory, before anything is loaded."),
    "doctor": ("magistral_mlx.cli.doctor", "Check whether this machine is good enough."),
    "bench": ("magistral_mlx.cli.bench", "Measure speed, beside other runtimes."),
    "models": ("magistral_mlx.cli.models", "List the models on this machine."),
}

USER_ERROR, INTERRUPTED = 2, 130


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="magistral-mlx")
def cli() -> None:
    """Magistral Small 1.2 on Apple Silicon: text, images and thinking."""


def main() -> None:
    """Entry point. Exit status 0, 2 for a user's mistake, 130 after Ctrl-C."""
    try:
        check_platform()
        status = cli.main(prog_name="magistral-mlx", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except MagistralError as error:
        _fail(as_typed(str(error)))
    except click.UsageError as error:
        _fail(_usage(error))
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # The reader of the pipe has gone; Python must not try to flush into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        # No permission, a full disk, a name that is too long: it says which, and where.
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}.")


def _fail(message: str) -> NoReturn:
    """End with one line on stderr."""
    click.echo(f"magistral-mlx: {' '.join(message.split())}", err=True)
    sys.exit(USER_ERROR)


def _usage(error: click.UsageError) -> str:
    """What is wrong with the command line, and where the right words stand."""
    message = error.format_message()
    if not message[:1].isupper():
        return message  # our own
    command = error.ctx.command_path if error.ctx else "magistral-mlx"
    begin = message[0].lower() + message[1:].rstrip(".")
    return f"{begin}. `{command} --help` lists what there is."


def as_typed(message: str) -> str:
    """An error of the API in the words of the command line: cache_size becomes --cache-size."""
    from dataclasses import fields

    from magistral_mlx.api.load_options import LoadOptions
    from magistral_mlx.api.options import Options

    names = [field.name for cls in (Options, LoadOptions) for field in fields(cls)]
    compound = "|".join(name for name in names if "_" in name)
    first = "|".join(names)
    found = (
        rf"(?<![\w./'-])(?:{compound})(?![\w./'])"
        rf"|^(?:{first})(?= (?:is|holds|needs|and)\b)|(?<= and )(?:{first})(?= exclude)"
    )
    return re.sub(found, lambda name: f"--{name[0].replace('_', '-')}", message)


if __name__ == "__main__":
    main()
