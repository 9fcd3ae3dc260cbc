"""`magistral-mlx generate`: one prompt, one answer, streamed."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

import click

from magistral_mlx.cli.attachments import count_images, open_images, read_files, tokens_of
from magistral_mlx.cli.generation import generation_options, options_of, system_text, with_system
from magistral_mlx.cli.loading import (
    load_options,
    loading_options,
    model_option,
    open_model,
    say_last_notes,
)
from magistral_mlx.cli.machine_options import machine_options
from magistral_mlx.cli.machines import machines_of, run_on_machines
from magistral_mlx.cli.params import FILE, Value, command, option
from magistral_mlx.cli.process import quick_imports
from magistral_mlx.cli.terminal import say, write
from magistral_mlx.files import decode_text, read_text_file, without_final_newlines
from magistral_mlx.option_spec import Choice, check_unicode

if TYPE_CHECKING:
    from magistral_mlx.api.stream import Stream
    from magistral_mlx.chat.messages import User
    from magistral_mlx.cli.attachments import Parts
    from magistral_mlx.cli.printing import Printer

_PDF_MODES = ("text", "images")


@command()
@click.argument("prompt", required=False)
# What has no effect on a single turn is left out.
@generation_options(without=("keep_thinking", "overflow"))
@option(
    "--prompt-file",
    type=FILE,
    metavar="FILE",
    section="Prompt",
    help="Prompt from a file, in place of PROMPT.",
)
@option(
    "-f",
    "--file",
    "files",
    multiple=True,
    type=FILE,
    metavar="FILE",
    section="Prompt",
    help="Text, code, PDF or image, put before the text. Give it again for more, in order.",
)
@option(
    "--pdf",
    type=Value(str, Choice(*_PDF_MODES), words=_PDF_MODES),
    metavar="text|images",
    default="text",
    section="Prompt",
    help="Whether the model reads the text of a PDF or sees its pages.  [default: text]",
)
@option(
    "--image",
    "images",
    multiple=True,
    type=FILE,
    metavar="FILE",
    section="Prompt",
    help="Image, put before the text. Give it again for more, in order.",
)
@option("--hide-thinking", is_flag=True, section="Output", help="Show the answer alone.")
@option("--json", "as_json", is_flag=True, section="Output", help="Print one JSON object a line.")
@option(
    "--stats/--no-stats",
    default=True,
    section="Output",
    help="Show figures at the end, or not.  [default: stats]",
)
@model_option
@loading_options(without=("images", "parallel"))
@machine_options
def generate(
    prompt: str | None, images: tuple[str, ...], files: tuple[str, ...], **options: Any
) -> int:
    """Answer PROMPT ('-' reads it from stdin), thinking first.

    The answer goes to stdout and everything else to stderr, unless stdout is a terminal.
    """
    reported = options["logprobs"] or options["top_logprobs"]
    if (reported or options["prompt_logprobs"] is not None) and not options["as_json"]:
        raise click.UsageError("--logprobs, --top-logprobs and --prompt-logprobs need --json.")
    write("")  # a stdout that is closed costs no time then
    if (machines := machines_of(options)) is not None:
        loading = load_options(options, images=count_images(open_images(images)))
        return run_on_machines(machines, [options["model"]], loading, options["split"])
    with quick_imports():
        settings = options_of(options)
        system = system_text(options)
        # Before the model is loaded: a wrong path should not cost half a minute.
        parts = [*open_images(images), *read_files(files, options["pdf"])]
        loading = load_options(options, images=count_images(parts))
        user = _user(_read_prompt(prompt, options["prompt_file"]), parts)
        printer = _printer(options)
    with open_model(options["model"], loading) as magistral:
        settings = with_system(settings, system, magistral)
        if options["stats"] and not options["as_json"]:
            for name, of_file in zip(files, parts[len(images) :], strict=True):
                say(f"{name}: {tokens_of(of_file, magistral, settings.image_tokens):,} tokens.")
        status = _show(magistral.stream(user, options=settings), printer)
    say_last_notes(magistral)
    return status


def _printer(options: dict[str, Any]) -> Printer:
    from magistral_mlx.cli.printing import JsonPrinter, TextPrinter

    if options["as_json"]:
        return JsonPrinter(hide_thinking=options["hide_thinking"])
    return TextPrinter(hide_thinking=options["hide_thinking"], stats=options["stats"])


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


def _read_prompt(prompt: str | None, file: str | None) -> str:
    """The text of the prompt, from the command line, a file or stdin."""
    if prompt is not None and file is not None:
        raise click.UsageError("give the prompt as PROMPT or with --prompt-file, not both.")
    if "-" in (prompt, file):
        text = without_final_newlines(decode_text(sys.stdin.buffer.read(), "the prompt on stdin"))
    elif file is not None:
        text = without_final_newlines(read_text_file(file, "the prompt"))
    else:
        text = prompt or ""
    if not text.strip():
        raise click.UsageError(
            "the prompt is empty. Give a text, - to read it from stdin, or --prompt-file FILE."
        )
    check_unicode("the prompt", text)
    return text


def _user(text: str, files: list[Parts]) -> User:
    from magistral_mlx.chat.messages import User

    attached = [part for parts in files for part in parts]
    return User((*attached, text) if attached else text)
