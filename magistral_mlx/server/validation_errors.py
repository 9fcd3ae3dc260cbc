"""What is wrong with a request that its schema refuses: the field, and one line about it.

pydantic tells it in its own terms, with the names of our classes. Clients read what they may send.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

# Type of the error of a union whose tags are not the types that clients send; its message is these.
UNKNOWN_TYPE = "unknown_type"
_SHOWN = 200  # characters of what a client sent, in a message
_Path = tuple[str | int, ...]

# What pydantic's types of errors ask for.
_EXPECTED = {
    "string_type": "a text",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "list_type": "a list",
}
_PLURALS = {"str": "texts", "int": "integers", "float": "numbers"}


def validation_error(error: RequestValidationError) -> tuple[str | None, str]:
    """The invalid field, and one line about it.

    Of a field of several kinds pydantic reports an error for each kind. The one deepest in the
    request counts, or the one farthest in a list: it is of the kind that was meant. Where the kinds
    fail alike all of them are told.
    """
    found = [_Error(each, error.body) for each in error.errors()]
    deepest = max(found, key=lambda each: len(each.place))
    siblings = [each for each in found if each.is_farther(deepest)]
    chosen = max(siblings, key=lambda each: each.last_index, default=deepest)
    alike = [each for each in found if each is chosen or each.is_alternative(chosen)]
    param = _dotted(chosen.place)
    message = f"{param or 'the body'}: {_message(chosen, alike)}{chosen.shown}."
    others = {
        each.place
        for each in found
        if each.place != chosen.place[: len(each.place)] and not each.is_of_other_kind(chosen)
    }
    if others:
        problems = "problem follows" if len(others) == 1 else "problems follow"
        message += f" {len(others)} more {problems}."
    return param, message


class _Error:
    """One of pydantic's errors.

    place: path of the field in the request, without pydantic's names of kinds.
    """

    def __init__(self, error: Mapping[str, Any], body: Any) -> None:
        self.type: str = error["type"]
        self.text: str = error["msg"].removeprefix("Value error, ")
        self.context: Mapping[str, Any] = error.get("ctx", {})
        self.input: Any = error.get("input")
        self.location: Sequence[str | int] = error["loc"]
        self._in_request = self._steps(body)
        self.place: _Path = tuple(
            part
            for part, is_step in zip(self.location[1:], self._in_request[1:], strict=True)
            if is_step
        )
        if self.type == "union_tag_not_found" and isinstance(self.input, dict):
            self.place += (self.discriminator,)

    @property
    def shown(self) -> str:
        """What was given, where it is short."""
        if not isinstance(self.input, str | int | float | bool):
            return ""
        return f" (it is {self.input!r:.{_SHOWN}})"

    @property
    def discriminator(self) -> str:
        """The field that tells the kind of an object."""
        return str(self.context.get("discriminator", "type")).strip("'")

    @property
    def is_empty(self) -> bool:
        """Whether the value is of the right kind, and only lacks content."""
        is_short = self.type in ("too_short", "string_too_short")
        return is_short and self.context["min_length"] == 1

    @property
    def last_index(self) -> int:
        """The last part of the place, in a list; -1 elsewhere."""
        last = self.place[-1] if self.place else None
        return last if isinstance(last, int) else -1

    def is_of_other_kind(self, other: _Error) -> bool:
        """Whether this one and `other` are of two kinds that one field may have."""
        for n, (mine, its) in enumerate(zip(self.location, other.location, strict=False)):
            if mine != its:
                return not (self._in_request[n] and other._in_request[n])
        return False

    def is_farther(self, other: _Error) -> bool:
        """Whether it stands in the same list, read as one of another kind."""
        is_near = self.place[:-1] == other.place[:-1] and len(self.place) == len(other.place)
        return is_near and self.last_index > other.last_index and self.is_of_other_kind(other)

    def is_alternative(self, other: _Error) -> bool:
        """Whether it says what else could stand in the place of `other`."""
        return self.place == other.place and self.is_of_other_kind(other)

    def _steps(self, body: Any) -> list[bool]:
        """Which parts of the location are steps into the request."""
        if self.location[0] != "body":
            return [True] * len(self.location)
        steps, value = [True], body
        for part in self.location[1:]:
            steps.append(_has(value, part))
            if steps[-1]:
                value = value[part]
        if self.type == "missing":
            steps[-1] = True
        return steps


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _dotted(place: _Path) -> str | None:
    """("messages", 0, "content") -> messages[0].content"""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or None


def _message(chosen: _Error, alike: Sequence[_Error]) -> str:
    """What is wrong; `alike` are the errors of all kinds that may stand there."""
    for error in alike:
        if error.type in ("union_tag_invalid", UNKNOWN_TYPE) and isinstance(error.input, dict):
            return _unknown_tag(error)
    if chosen.type == "union_tag_not_found":
        is_there = isinstance(chosen.input, dict) and chosen.discriminator in chosen.input
        return "it must be a text" if is_there else "Field required"
    expected = [_expected(error) for error in alike]
    known = list(dict.fromkeys(each for each in expected if each is not None))
    if None in expected or not known:
        return chosen.text
    if all(error.is_empty for error in alike):
        return "it must not be empty"
    is_empty = any(error.is_empty for error in alike)
    return f"it must be {_either(known)}{'; not empty' if is_empty else ''}"


def _unknown_tag(error: _Error) -> str:
    given = error.input.get(error.discriminator)
    known = error.context.get("expected_tags", error.text)
    is_one = "," not in known
    return (
        f"{error.discriminator} is {given!r:.{_SHOWN}}; it must be "
        f"{known if is_one else f'one of {known}'}"
    )


def _expected(error: _Error) -> str | None:
    """What an error asks for; None where pydantic's text is as good."""
    if error.type == "literal_error":
        return str(error.context["expected"])
    if error.type == "string_too_short" and error.is_empty:
        return "a text"
    if error.type == "list_type" or (error.type == "too_short" and error.is_empty):
        return f"a list{_of_entries(error.location[-1])}"
    return _EXPECTED.get(error.type)


def _of_entries(kind: str | int) -> str:
    """What pydantic's name of a list tells of its entries: list[str] -> " of texts"."""
    inner = re.fullmatch(r"list\[(.*)\]", kind) if isinstance(kind, str) else None
    if inner is None:
        return ""
    if inner[1].startswith("list["):
        return f" of lists{_of_entries(inner[1])}"
    if re.match(r"tagged-union|[A-Z]", inner[1]):
        return " of objects"
    return f" of {_PLURALS[inner[1]]}" if inner[1] in _PLURALS else ""


def _either(words: Iterable[str]) -> str:
    """["a", "b", "c"] -> a, b or c"""
    *before, last = words
    if not before:
        return last
    comma = "," if any(" or " in word for word in (*before, last)) else ""
    return f"{', '.join(before)}{comma} or {last}"
