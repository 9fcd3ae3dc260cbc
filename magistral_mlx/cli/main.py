"""The `magistral-mlx` command: finds the subcommand, and turns errors into one line.

Each command lives in a file of its own and is imported when it is called, so `--help` is quick.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from magistral_mlx import __version__
from magistral_mlx.cli.terminal import prepare_streams, say
from magistral_mlx.distributed.messages import drop_ring_messages
from magistral_mlx.distributed.place import place
from magistral_mlx.errors import MagistralError
from magistral_mlx.requirements import check_environment, check_platform

# Command -> its module and the line that `--help` shows.
_COMMANDS = {
    "generate": ("magistral_mlx.cli.generate", "Answer a prompt, with images if you like."),
    "chat": ("magistral_mlx.cli.chat", "Talk with the model on this terminal."),
    "serve": ("magistral_mlx.cli.serve", "Answer apps and browsers on this machine."),
    "traces": ("magistral_mlx.cli.traces", "Summarise what serve --traces, or eval, wrote."),
    "convert": ("magistral_mlx.cli.convert", "Quantize a checkpoint to MLX format."),
    "plan": ("magistral_mlx.cli.plan", "Show what fits into memory, before anything is loaded."),
    "doctor": ("magistral_mlx.cli.doctor", "Check whether this machine is good enough."),
    "bench": ("magistral_mlx.cli.bench", "Measure speed, beside other runtimes."),
    "eval": ("magistral_mlx.cli.eval", "Score answers to benchmarks, beside published figures."),
    "models": ("magistral_mlx.cli.models", "List the models on this machine."),
    "show": ("magistral_mlx.cli.models", "Describe a model."),
    "pull": ("magistral_mlx.cli.models", "Download a model from the hub."),
    "rm": ("magistral_mlx.cli.models", "Delete a model from this machine."),
}

# Commands that others run, and no list shows.
_HIDDEN = {"machine-agent": ("magistral_mlx.cli.machine_agent", "machine_agent")}

USER_ERROR, INTERRUPTED = 2, 130


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _HIDDEN:
            module, function = _HIDDEN[cmd_name]
        elif cmd_name in _COMMANDS:
            module, function = _COMMANDS[cmd_name][0], cmd_name
        else:
            return None
        command = getattr(importlib.import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="magistral-mlx")
def cli() -> None:
    """Magistral Small 1.2 on Apple Silicon: text, images and thinking."""


def main() -> NoReturn:
    """Entry point. Exit status 0, 2 for a user's mistake, 130 after Ctrl-C."""
    prepare_streams()
    status = _run()
    # From here on nothing is left to interrupt.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except (OSError, MagistralError) as error:
        if not isinstance(error, BrokenPipeError):
            status = _fail(f"stdout cannot be written: {getattr(error, 'strerror', error)}.")
        _leave_stdout()
    if status == INTERRUPTED:
        # A worker thread may be inside MLX still. It would come back into an interpreter that is
        # being taken down, and abort the process.
        sys.stderr.flush()
        os._exit(INTERRUPTED)
    sys.exit(status)


def _run() -> int:
    """Run the command line, and tell errors in one line -> the exit status."""
    try:
        check_platform()
        check_environment()
        if (here := place()) is not None:
            drop_ring_messages()
            if not here.leads:
                from magistral_mlx.distributed.follower import follow

                follow(here)
                return 0
        status = cli.main(prog_name="magistral-mlx", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except MagistralError as error:
        return _fail(as_typed(str(error)))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USER_ERROR
    except click.UsageError as error:
        return _fail(_usage(error))
    except click.ClickException as error:
        return _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        _leave_stdout()
        return 1
    except OSError as error:
        # No permission, a full disk, a name that is too long: it says which, and where.
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}.")
    except RecursionError:
        return _fail("something in the files or options is nested too deeply to be read.")


def _leave_stdout() -> None:
    """The reader of the pipe has gone: keep Python from writing into it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _fail(message: str) -> int:
    """Tell an error -> the exit status for a user's mistake."""
    say(message)
    return USER_ERROR


def _usage(error: click.UsageError) -> str:
    """An error in the command line, and where the right words stand."""
    from magistral_mlx.cli.hints import COMMANDS, NONE_NEEDED, OPTIONS

    command = error.ctx.command_path if error.ctx else "magistral-mlx"
    if isinstance(error, click.NoSuchOption):
        asked = f"there is no option {error.option_name}"
        hint = OPTIONS.get(error.option_name) or _nearest(error.option_name, error.possibilities)
        if hint.startswith(NONE_NEEDED):
            return f"{asked}, and none is needed: {hint.removeprefix(NONE_NEEDED)}."
        return f"{asked}; give {hint}." if hint else f"{asked}. {_help(command)}"
    if isinstance(error, click.NoSuchCommand):
        close = difflib.get_close_matches(error.command_name, _COMMANDS, n=1)
        hint = COMMANDS.get(error.command_name) or (f"`{close[0]}` is nearest" if close else "")
        asked = f"there is no command {error.command_name}"
        return f"{asked}; {hint}." if hint else f"{asked}. {_help(command)}"
    message = error.format_message()
    if not message[:1].isupper():
        return message  # our own
    return f"{message[0].lower()}{message[1:].rstrip('.')}. {_help(command)}"


def _nearest(option: str, possibilities: Sequence[str] | None) -> str:
    """The one of the options that is written most alike; "" for none."""
    names = {name.strip("-"): name for name in possibilities or ()}
    close = difflib.get_close_matches(option.strip("-"), names, n=1)
    return names[close[0]] if close else ""


def _help(command: str) -> str:
    return f"`{command} --help` lists what there is."


def as_typed(message: str) -> str:
    """An error of the API in the words of the command line: cache_size becomes --cache-size."""
    from dataclasses import fields

    from magistral_mlx.api.load_options import LoadOptions
    from magistral_mlx.api.options import Options

    names = [field.name for cls in (Options, LoadOptions) for field in fields(cls)]
    compound = "|".join(name for name in names if "_" in name)
    first = "|".join(names)
    found = (
        rf"(?<![\w./'-])(?:{compound})(?![\w/']|\.\w)"
        rf"|^(?:{first})(?= (?:is|holds|needs|and)\b)|(?<= and )(?:{first})(?= exclude)"
    )
    return re.sub(found, lambda name: f"--{name[0].replace('_', '-')}", message)


if __name__ == "__main__":
    main()
