"""Parameters of the command line: sizes, durations, and options made from their declarations."""

import re
from dataclasses import fields

import click
import pytest

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.options import Options
from magistral_mlx.cli.chat import chat
from magistral_mlx.cli.eval import eval
from magistral_mlx.cli.generate import generate
from magistral_mlx.cli.params import parse_duration, parse_size
from magistral_mlx.cli.serve import serve
from magistral_mlx.engine.dry import Dry
from tests.command_line import run


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("30s", 30), ("10m", 600), ("1.5h", 5400), (".5m", 30), ("2d", 172800), ("0", 0)],
)
def test_a_number_and_a_unit_are_seconds(text: str, seconds: float):
    assert parse_duration(text) == seconds


def test_never_is_no_limit():
    assert parse_duration("never") is None


@pytest.mark.parametrize("text", ["", "soon", "10 minutes", "-1s", "1e9", "10m5s", "nan", "inf"])
def test_no_duration_is_refused_with_examples(text: str):
    with pytest.raises(ValueError, match="10m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("20GB", 20 * 10**9),
        ("20gb", 20 * 10**9),
        ("20 Gb", 20 * 10**9),
        ("1.5g", 1_500_000_000),
        ("512MiB", 512 << 20),
        ("512mib", 512 << 20),
        ("1TIB", 1 << 40),
        ("700b", 700),
        ("5", 5),
    ],
)
def test_a_size_has_a_unit_in_any_case(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "20 gigs", "-1GB", "1.2.3GB", ".", "GB", "inf", "2e9"])
def test_no_size_is_refused_with_examples(text: str):
    with pytest.raises(ValueError, match="20GB"):
        parse_size(text)


def help_of(param: click.Parameter) -> str:
    return (isinstance(param, click.Option) and param.help) or ""


def names_of(command: click.Command) -> set[str | None]:
    return {param.name for param in command.params}


LEFT_OUT = {
    # One turn has no history.
    "generate": {"keep_thinking", "overflow"},
    # Nobody answers calls on a terminal, and nothing shows several answers or probabilities.
    "chat": {
        *("tools", "tool_choice", "strict_tools", "parallel_tool_calls"),
        *("n", "logprobs", "top_logprobs", "prompt_logprobs"),
    },
}


@pytest.mark.parametrize("command", [generate, chat], ids=lambda command: command.name)
def test_generate_and_chat_take_every_option_that_the_api_has(command: click.Command):
    assert command.name
    options = {field.name for field in fields(Options)} - LEFT_OUT[command.name]
    assert options <= names_of(command)
    assert not LEFT_OUT[command.name] & names_of(command)
    assert {f"dry_{field.name}" for field in fields(Dry) if field.metadata} <= names_of(command)


@pytest.mark.parametrize("command", [generate, chat, eval], ids=lambda command: command.name)
def test_help_names_no_option_that_the_command_lacks(command: click.Command):
    known = {field.name for cls in (Options, LoadOptions) for field in fields(cls)}
    words = {word for param in command.params for word in re.findall(r"\w+_\w+", help_of(param))}
    assert words & known <= names_of(command)


@pytest.mark.parametrize("words", [("chat", "demo"), ("eval", "demo", "-m", "demo")])
def test_an_answer_of_no_tokens_is_refused(words: tuple[str, ...]):
    assert run(*words, "--max-tokens", "0").refusal == ("--max-tokens is 0; it must be 1 or more.")


def test_serve_takes_every_option_of_loading():
    # It takes adapters by name.
    assert {field.name for field in fields(LoadOptions)} - {"adapter"} <= names_of(serve)
