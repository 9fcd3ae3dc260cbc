"""Parameters of commands: made from declarations of options, grouped in `--help`, and completed.

The file is longer than others because each kind of value is parsed and completed in one class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from magistral_mlx.api.option_kinds import (
    CacheScheme,
    JSONSchema,
    LogitBias,
    ThinkingMode,
    TokenIds,
    Tools,
)
from magistral_mlx.errors import InvalidOption
from magistral_mlx.files import read_text_file
from magistral_mlx.option_spec import (
    Choice,
    Integer,
    Kind,
    Name,
    Number,
    Size,
    Texts,
    declarations,
    default_text,
    spec_of,
)

_Command = TypeVar("_Command", bound=Callable[..., Any])
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{prefix}I": 1 << 10 * n for n, prefix in enumerate("KMGT", 1)}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_size(text: str) -> int:
    """Bytes of "20GB", "512MiB" or "1.5g".

    Raises:
        ValueError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]I?|)B?\s*", text.upper())
    if not found:
        raise ValueError("a size, as in 20GB or 512MiB")
    return int(float(found[1]) * _UNITS[found[2]])


def parse_duration(text: str) -> float | None:
    """Seconds of "90", "30s", "10m", "1.5h" or "2d"; None of "never".

    Raises:
        ValueError: it is no duration.
    """
    if text == "never":
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smhd]?)\s*", text)
    if not found:
        raise ValueError("a duration, as in 30s, 10m, 1.5h or never")
    return float(found[1]) * _SECONDS[found[2]]


def parse_thinking(text: str) -> str | int:
    """The option that "on", "off" or a number of tokens stands for; other text as it is."""
    return int(text) if text.isascii() and text.isdigit() else text.lower()


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(Number.noun) from None


def _parse_integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(Integer.noun) from None


def _shown(param: click.Parameter | None) -> str:
    """How a parameter is called in errors: an option by its longest spelling, as -n tells less."""
    if isinstance(param, click.Argument):
        return (param.metavar or param.human_readable_name).strip("[].…")
    return max(param.opts, key=len) if param and param.opts else ""


class Value(click.ParamType):  # type: ignore[type-arg]
    """Text on the command line as the value of an option.

    parse raises ValueError with what is expected; kind then checks the value.
    """

    def __init__(
        self,
        parse: Callable[[str], Any],
        kind: Kind | None = None,
        *,
        name: str = "value",
        words: Sequence[str] = (),
    ) -> None:
        self._parse, self._kind, self.name, self._words = parse, kind, name, words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value  # a default
        shown = _shown(param) or self.name
        try:
            parsed = self._parse(value)
        except ValueError as error:
            raise InvalidOption(f"{shown} is {value!r}; it must be {error}.") from None
        if self._kind is None or parsed is None:
            return parsed
        return self._kind.validate(shown, parsed)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(word) for word in self._words if word.startswith(incomplete)]


class File(click.ParamType):  # type: ignore[type-arg]
    """A file or folder, which shells complete. An empty name, as of an unset variable, is none."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Name("").validate(_shown(param) or self.name, value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class ModelName(File):
    """A model: shells complete those on this machine, and folders."""

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from magistral_mlx.library import find_models

        names = ["demo", *(model.name for model in find_models())]
        known = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return known or [CompletionItem(incomplete, type="dir")]


SIZE = partial(Value, parse_size)
DURATION = partial(Value, parse_duration)
INTEGER = partial(Value, _parse_integer)
NUMBER = partial(Value, _parse_number)
FILE = File()
MODEL = ModelName()


class Option(click.Option):
    """An option that `--help` shows under the heading `section`."""

    def __init__(self, *args: Any, section: str = "Options", **attrs: Any) -> None:
        super().__init__(*args, **attrs)
        self.section = section


option = partial(click.option, cls=Option)


class SectionedCommand(click.Command):
    """A command whose `--help` groups its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for section in (*(name for name in sections if name != "Options"), "Options"):
            with formatter.section(section):
                formatter.write_dl(sections[section], col_max=26)


command = partial(click.command, cls=SectionedCommand)


def declared(
    cls: type[Any],
    *names: str,
    without: Sequence[str] = (),
    section: str | None = None,
    prefix: str = "",
    defaults: Mapping[str, str] | None = None,
    flags: Mapping[str, Sequence[str]] | None = None,
    own: Mapping[str, Any] | None = None,
) -> Callable[[_Command], _Command]:
    """A decorator that gives a command the options that a dataclass declares.

    A parameter that was not given is None, or empty where it may be given several times.

    Args:
        names: the options; all of them for none.
        without: those that the command does not take.
        section: a heading for all of them, in place of their own.
        prefix: what their names begin with on the command line.
        defaults: those of the command where they differ from the options'.
        flags: name -> its short flags.
        own: name -> the command's declaration in place of the class's, made by `option`.
    """
    found = {**declarations(cls), **(own or {})}
    chosen = [name for name in names or found if name not in without]

    def decorate(function: _Command) -> _Command:
        for name in reversed(chosen):
            word = f"{prefix}{name}".replace("_", "-")
            switch = f"--{word}/--no-{word}" if found[name].default is True else f"--{word}"
            words = (switch, *(flags or {}).get(name, ()))
            attributes = _attributes(found[name], section, (defaults or {}).get(name))
            function = option(*words, **attributes)(function)
        return function

    return decorate


def given(options: dict[str, Any], cls: type[Any], prefix: str = "") -> dict[str, Any]:
    """The values of a command's parameters that were given, by the names that `cls` declares."""
    values = {name: options.get(f"{prefix}{name}") for name in declarations(cls)}
    return {name: value for name, value in values.items() if value not in (None, ())}


def _attributes(field: Any, section: str | None, own_default: str | None) -> dict[str, Any]:
    """Return the arguments of `click.option` for a declared option."""
    spec, default = spec_of(field), field.default
    assert spec
    usual = own_default or default_text(field)
    repeated = isinstance(spec.kind, Texts | TokenIds | LogitBias)
    again = " Give it again for more." if repeated else ""
    attributes = {
        "default": own_default,
        "help": spec.help + again + (f"  [default: {usual}]" if usual else ""),
        "section": section or spec.section or "Options",
    }
    if isinstance(default, bool):
        return attributes | {"is_flag": True, "default": None}
    return attributes | {
        "type": _type(spec.kind),
        "metavar": spec.kind.metavar,
        "multiple": repeated,
    }


def _type(kind: Kind) -> Any:
    match kind:
        case Size():
            return Value(parse_size, kind)
        case Integer():
            return Value(_parse_integer, kind)
        case Number():
            return Value(_parse_number, kind)
        case Choice() | CacheScheme():
            return Value(str, kind, words=kind.values)
        case ThinkingMode():
            return Value(parse_thinking, kind, words=("on", "off"))
        case JSONSchema():
            return _FileOf(lambda name: read_text_file(name, "the schema"), kind)
        case Tools():
            return _FileOf(_read_tools, kind)
        case TokenIds():
            return Value(_parse_ids)
        case LogitBias():
            return Value(_parse_bias)
        case Name():
            return FILE
    return click.STRING


class _FileOf(Value, File):
    """A file that holds the value."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return Value.convert(self, File.convert(self, value, param, ctx), param, ctx)


def _read_tools(name: str) -> Any:
    import json

    try:
        return json.loads(read_text_file(name, "the list of tools"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a file with a JSON list of tools: {error}") from None


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError("token ids, as in 2 or 2,1000") from None


def _parse_bias(text: str) -> tuple[int, float]:
    id, _, bias = text.partition("=")
    try:
        return int(id), float(bias)
    except ValueError:
        raise ValueError("a token id and a number, as in 1000=-5") from None
