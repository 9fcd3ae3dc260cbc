"""Declarations of options: type, range, default and help of each, in one place.

A dataclass declares its options as fields made by `option`. From the declaration come the check of
a value, the command line's option, the server's schema and the reference.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields, replace
from typing import Any, NoReturn, TypeVar

from magistral_mlx.errors import InvalidOption

_Options = TypeVar("_Options")


class Kind:
    """The values that an option takes."""

    metavar = "TEXT"

    def validate(self, name: str, value: Any) -> Any:
        """Return the value in its normal form.

        Raises:
            InvalidOption: a value that the option `name` does not take.
        """
        if not isinstance(value, str):
            self._refuse(name, value)
        check_unicode(name, value)
        return value

    @property
    def words(self) -> str:
        """The values in words, as in "from 0 to 1"."""
        return "text"

    def _refuse(self, name: str, value: object, expected: str | None = None) -> NoReturn:
        raise InvalidOption(f"{name} is {value!r}; it must be {expected or self.words}.")


class Number(Kind):
    """A finite number from `least` or `above` to `most`. meanings: what single values stand for."""

    metavar = "NUMBER"
    noun = "a number"

    def __init__(
        self,
        least: float | None = None,
        most: float | None = None,
        *,
        above: float | None = None,
        meanings: Mapping[float, str] | None = None,
    ) -> None:
        self.least, self.most, self.above = least, most, above
        self.meanings = dict(meanings or {})

    def validate(self, name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(name, value, self.noun)
        fits = (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )
        if not fits:
            self._refuse(name, value)
        return value

    @property
    def words(self) -> str:
        least, most = self._label(self.least), self._label(self.most)
        if self.above is not None:
            range_ = f"above {self.above}" + (f" and at most {most}" if most else "")
        elif least and most:
            range_ = f"from {least} to {most}"
        else:
            range_ = f"{least} or more" if least else self.noun
        bounds = (self.least, self.most)
        rest = [
            f"{value} is {what}" for value, what in self.meanings.items() if value not in bounds
        ]
        return "; ".join([range_, *rest])

    def _label(self, bound: float | None) -> str:
        if bound is None:
            return ""
        return f"{bound} ({self.meanings[bound]})" if bound in self.meanings else f"{bound}"


class Integer(Number):
    """A whole number."""

    metavar = "N"
    noun = "a whole number"

    def validate(self, name: str, value: Any) -> Any:
        if type(value) is not int:
            self._refuse(name, value, self.noun)
        return super().validate(name, value)


class Size(Integer):
    """A number of bytes."""

    metavar = "SIZE"

    @property
    def words(self) -> str:
        return f"{(self.least or 0) / 10**6:.0f} MB or more, in bytes"


class Choice(Kind):
    """One of some words."""

    def __init__(self, *values: str) -> None:
        self.values = values
        self.metavar = "|".join(values)

    def validate(self, name: str, value: Any) -> Any:
        if value not in self.values:
            self._refuse(name, value)
        return value

    @property
    def words(self) -> str:
        if len(self.values) == 2:
            return " or ".join(map(repr, self.values))
        return f"one of {', '.join(self.values)}"


class Flag(Kind):
    """True or False."""

    metavar = ""

    def validate(self, name: str, value: Any) -> Any:
        if not isinstance(value, bool):
            self._refuse(name, value)
        return value

    @property
    def words(self) -> str:
        return "True or False"


class Name(Kind):
    """The name of a file, a folder or a model."""

    def __init__(self, metavar: str) -> None:
        self.metavar = metavar

    def validate(self, name: str, value: Any) -> Any:
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            self._refuse(name, value)
        return value

    @property
    def words(self) -> str:
        return "a name, not empty"


class Texts(Kind):
    """A list of texts, none of them empty. single: whether one text stands for a list of one."""

    def __init__(self, least: int = 0, *, single: bool = False) -> None:
        self.least, self.single = least, single

    def validate(self, name: str, value: Any) -> Any:
        if self.single and isinstance(value, str):
            value = (value,)
        texts = several(name, value)
        if len(texts) < self.least or not all(isinstance(t, str) and t for t in texts):
            self._refuse(name, value)
        for text in texts:
            check_unicode(name, text)
        return texts

    @property
    def words(self) -> str:
        return f"a list of {'one text or more' if self.least else 'texts'}, none of them empty"


class Spec:
    """Declaration of an option besides its name, type and default.

    unset: what None stands for. section: its heading in lists.
    """

    def __init__(self, kind: Kind, help: str, unset: str, section: str) -> None:
        self.kind, self.help, self.unset, self.section = kind, help, unset, section


def option(default: Any, kind: Kind, help: str, *, unset: str = "", section: str = "") -> Any:
    """A dataclass field that declares an option.

    Args:
        help: a noun or verb phrase that ends in a full stop.
        unset: what None stands for, as in "what fits". An option takes None where this is given,
            or where its default is None.
        section: the heading that it stands under in `--help` and in the reference.
    """
    return field(default=default, metadata={"option": Spec(kind, help, unset, section)})


def spec_of(declared: Field[Any]) -> Spec | None:
    """The declaration that `option` put into a dataclass field; None for another field."""
    return declared.metadata.get("option")


def declarations(cls: type[Any]) -> dict[str, Field[Any]]:
    """The options that a dataclass declares, by name, in order."""
    return {field.name: field for field in fields(cls) if spec_of(field)}


def default_text(declared: Field[Any]) -> str:
    """The default of an option in words, as in "0 (off)"; "" for none, and for a flag."""
    spec, default = spec_of(declared), declared.default
    if default is None and spec:
        return spec.unset
    if default == () or isinstance(default, bool):
        return ""
    if not isinstance(default, int | float):
        return str(default)
    meanings = spec.kind.meanings if spec and isinstance(spec.kind, Number) else {}
    return f"{default:g} ({meanings[default]})" if default in meanings else f"{default:g}"


def validate_options(options: Any, prefix: str = "") -> None:
    """Check each option of a frozen dataclass, and bring its value into its normal form.

    Args:
        prefix: of the options' names in errors.

    Raises:
        InvalidOption: a value that its option does not take.
    """
    for declared in fields(options):
        value, spec = getattr(options, declared.name), spec_of(declared)
        if spec is None or (value is None and (declared.default is None or spec.unset)):
            continue
        normal = spec.kind.validate(f"{prefix}{declared.name}", value)
        if normal is not value:
            object.__setattr__(options, declared.name, normal)


def check_unicode(name: str, text: str) -> None:
    """Check that a text can be encoded.

    Raises:
        InvalidOption: it holds half of a surrogate pair, as bytes that are no UTF-8 become.
    """
    if problem := half_pair(text):
        raise InvalidOption(f"{name} is not Unicode text: {problem}.")


def half_pair(text: str) -> str:
    """Where a text cannot be encoded, as it holds half of a surrogate pair; "" where it can."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        return f"{half} at {error.start} is half of a surrogate pair"
    return ""


def several(name: str, values: object) -> tuple[Any, ...]:
    """Return the values of a list option as a tuple.

    Raises:
        InvalidOption: a single value, or a text.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidOption(f"{name} is {values!r}; it must be a list.")
    return tuple(values)


def with_changes(
    cls: type[_Options], base: _Options | None, changes: Mapping[str, Any]
) -> _Options:
    """`base` (or the defaults) with `changes`.

    Raises:
        InvalidOption: an option that is unknown, with the nearest known one, or out of range.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
            raise InvalidOption(f"there is no option {name}: {hint}")
    if base is not None and not isinstance(base, cls):
        raise InvalidOption(f"options must be {cls.__name__}, not {type(base).__name__}.")
    return replace(base or cls(), **changes) if changes else base or cls()  # type: ignore[type-var]
