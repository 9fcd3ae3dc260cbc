"""`magistral-mlx generate`: one prompt, one answer, streamed."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.imports import quick_imports
from magistral_mlx.cli.loading import loading_options, open_model
from magistral_mlx.cli.printing import JsonPrinter, Printer, TextPrinter
from magistral_mlx.cli.thinking import parse_thinking

if TYPE_CHECKING:
    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.api.options import Options
    from magistral_mlx.api.stream import Stream
    from magistral_mlx.chat.messages import Message, System


@click.command()
@click.argument("prompt")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="FILE",
    help="An image, put before the text. Give it again for more, in order.",
)
@click.option(
    "--model",
    metavar="NAME_OR_DIR",
    help="A folder, a hub name, or 'demo'. Default: your 4-bit conversion, else one found here.",
)
@click.option("--max-tokens", type=int, help="Tokens to write at most. Default: what fits.")
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0 is greedy.")
@click.option("--top-p", type=float, default=0.95, show_default=True)
@click.option("--top-k", type=int, default=0, help="Draw among the k likeliest tokens only.")
@click.option("--min-p", type=float, default=0.0, help="Drop tokens below p times the likeliest.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option(
    "--thinking",
    default="on",
    metavar="on|off|TOKENS",
    show_default=True,
    help="Think first, answer at once, or think for so many tokens at most.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text.")
@click.option("--json-schema", metavar="FILE", help="Hold the answer to the schema in a file.")
@click.option("--regex", metavar="PATTERN", help="Hold the answer to a regular expression.")
@click.option("--choice", multiple=True, metavar="TEXT", help="One of these is the answer.")
@click.option("--image-tokens", type=int, help="Scale images down to so many tokens each.")
@click.option("--system", metavar="TEXT", help="A system prompt, taken literally.")
@click.option("--system-file", metavar="FILE", help="One from a file; its [THINK] part counts.")
@click.option("--no-system", is_flag=True, help="Send no system prompt.")
@click.option("--hide-thinking", is_flag=True, help="Show the answer alone.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
@click.option("--stats/--no-stats", default=True, show_default=True, help="Figures at the end.")
@click.option(
    "--speculation",
    type=click.Choice(["auto", "off", "ngram", "draft"]),
    default="auto",
    show_default=True,
    help="Check guesses, several tokens a pass, where that is faster. It changes no answer.",
)
@loading_options
def generate(prompt: str, images: tuple[str, ...], **options: Any) -> int:
    """Answer PROMPT ('-' reads it from stdin), thinking first.

    The answer goes to stdout and everything else to stderr, unless stdout is a terminal.
    """
    with quick_imports():
        settings = _settings(options)
    opened = _open_images(images)
    text = _read_prompt(prompt)
    printer: Printer = (
        JsonPrinter()
        if options["as_json"]
        else TextPrinter(hide_thinking=options["hide_thinking"], stats=options["stats"])
    )
    with open_model(options, len(opened)) as magistral:
        messages = _messages(_system(magistral, options), opened, text)
        return _show(magistral.stream(messages, options=settings), printer)


def _settings(options: dict[str, Any]) -> Options:
    """Check the options before the model is loaded: a wrong one should not cost half a minute."""
    from magistral_mlx.api.options import Options

    taken = (
        *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "regex"),
        "speculation",
    )
    schema = options["json_schema"]
    return Options(
        **{name: options[name] for name in taken},
        thinking=parse_thinking(options["thinking"]),
        json_schema=None if schema is None else _read_schema(schema),
        choice=options["choice"] or None,
        image_tokens=options["image_tokens"],
        system=None,  # it stands in the messages
    )


def _read_schema(path: str) -> Any:
    from magistral_mlx.errors import InvalidOption

    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidOption(f"the schema {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidOption(f"the schema {path} is not JSON: {error}.") from error


def _show(stream: Stream, printer: Printer) -> int:
    """Print events to the end. The first Ctrl-C ends the answer, a second one the program."""
    interrupted = False

    def stop(*_: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        stream.cancel()

    before = signal.signal(signal.SIGINT, stop)
    try:
        for event in stream:
            printer(event)
    finally:
        signal.signal(signal.SIGINT, before)
    return 130 if interrupted else 0


def _read_prompt(prompt: str) -> str:
    try:
        text = sys.stdin.read() if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise click.UsageError(f"what comes from stdin is no UTF-8 text ({error}).") from None
    if not text.strip():
        raise click.UsageError("the prompt is empty. Give a text, or - to read it from stdin.")
    return text


def _open_images(images: tuple[str, ...]) -> list[Any]:
    """Open images before the model is loaded: a wrong path should not cost half a minute."""
    if not images:
        return []
    from magistral_mlx.chat.messages import Image

    return [Image.open(Path(image)) for image in images]


def _messages(system: System | None, images: list[Any], text: str) -> list[Message]:
    from magistral_mlx.chat.messages import User

    user = User((*images, text) if images else text)
    return [system, user] if system else [user]


def _system(magistral: Magistral, options: dict[str, Any]) -> System | None:
    from magistral_mlx.chat.messages import System
    from magistral_mlx.chat.system import system_from_file

    given = [name for name in ("system", "system_file", "no_system") if options[name]]
    if len(given) > 1:
        raise click.UsageError("give only one of --system, --system-file and --no-system.")
    if options["no_system"]:
        return None
    if options["system"] is not None:
        return System(options["system"])
    if options["system_file"]:
        return system_from_file(options["system_file"], thinks=magistral.tokenizer.thinks)
    return magistral.default_system
