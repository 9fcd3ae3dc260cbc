"""The options of answers on the command line, and what they amount to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from magistral_mlx.api.options import Options
from magistral_mlx.cli.params import FILE, declared, given, option
from magistral_mlx.engine.dry import Dry
from magistral_mlx.files import read_text_file, without_final_newlines
from magistral_mlx.option_spec import Integer
from magistral_mlx.option_spec import option as declare

if TYPE_CHECKING:
    from magistral_mlx.api.magistral import Magistral

_Command = TypeVar("_Command", bound=Callable[..., Any])
# The options of a command that has no prompt_logprobs, and so no answer of 0 tokens.
ANSWERING = {
    "max_tokens": declare(
        None,
        Integer(1),
        "Tokens to generate at most, thinking included.",
        unset="what the context leaves",
        section="Length",
    )
}
_FLAGS = {"max_tokens": ("-n",), "seed": ("-s",)}


def generation_options(
    *, without: tuple[str, ...], defaults: Mapping[str, str] | None = None
) -> Callable[[_Command], _Command]:
    """Give a command the options of answers but those that it does not take.

    `adapter` is not among them: a command loads the one that it uses.
    """

    def decorate(command: _Command) -> _Command:
        for decorator in reversed(
            (
                declared(
                    Options,
                    without=(*without, "system", "adapter"),
                    defaults=defaults,
                    flags=_FLAGS,
                    own=ANSWERING if "prompt_logprobs" in without else None,
                ),
                declared(Dry, prefix="dry_", section="Sampling"),
                option(
                    "--system",
                    metavar="TEXT",
                    section="Prompt",
                    help="System prompt, taken literally; '' sends none.  "
                    "[default: the checkpoint's own]",
                ),
                option(
                    "--system-file",
                    type=FILE,
                    metavar="FILE",
                    section="Prompt",
                    help="System prompt from a file; its [THINK] part counts.",
                ),
                option("--no-system", is_flag=True, section="Prompt", help="No system prompt."),
            )
        ):
            command = decorator(command)
        return command

    return decorate


def options_of(options: dict[str, Any], **others: Any) -> Options:
    """The options of answers among a command's own, and `others` over them.

    Raises:
        InvalidOption: two that do not go together.
    """
    if _systems(options) > 1:
        raise click.UsageError("give only one of --system, --system-file and --no-system.")
    values = given(options, Options)
    values.pop("adapter", None)  # the folder to load it from
    if "stop_token_ids" in values:
        values["stop_token_ids"] = [id for ids in values["stop_token_ids"] for id in ids]
    if "logit_bias" in values:
        values["logit_bias"] = dict(values["logit_bias"])
    if dry := given(options, Dry, "dry_"):
        values["dry"] = Dry(**dry)
    if options["no_system"]:
        values["system"] = None
    return Options(**values | others)


def names_system(options: dict[str, Any]) -> bool:
    """Whether the system prompt, or that there is none, is among a command's own options."""
    return _systems(options) > 0


def _systems(options: dict[str, Any]) -> int:
    named = [name for name in ("system", "system_file") if options[name] is not None]
    return len(named) + options["no_system"]


def system_text(options: dict[str, Any]) -> str | None:
    """The text of --system-file, read before the model is loaded; None without it.

    Raises:
        InvalidOption: it cannot be read.
    """
    file = options["system_file"]
    return None if file is None else without_final_newlines(read_text_file(file, "the file"))


def with_system(options: Options, text: str | None, magistral: Magistral) -> Options:
    """The options with the system prompt of a file, its thinking parts as the model reads them."""
    if text is None:
        return options
    from magistral_mlx.chat.system import system_from_text

    return replace(
        options, system=system_from_text(text, thinking=magistral.tokenizer.has_thinking_tokens)
    )
