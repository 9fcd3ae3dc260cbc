"""What is wrong with a request, out of pydantic's many words for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError

_SHOWN = 200  # characters of what a client sent, in a message
Place = tuple[str | int, ...]


def problem_of(error: RequestValidationError) -> tuple[str | None, str]:
    """The field that is wrong, and what is wrong in one line.

    Where a field may be of several kinds, pydantic tells what is wrong with it as each of them.
    What lies deepest in the request counts: it is of the kind that was meant.
    """
    errors = error.errors()
    places = [_place(each, error.body) for each in errors]
    deepest = max(range(len(errors)), key=lambda n: len(places[n]))
    place, chosen = places[deepest], errors[deepest]
    given = chosen.get("input")
    shown = f" (it is {given!r:.{_SHOWN}})" if isinstance(given, str | int | float | bool) else ""
    param = _path(place)
    message = f"{param or 'the body'}: {_told(chosen['msg'])}{shown}."
    others = {other for other in places if other != place[: len(other)]}
    if others:
        problems = "problem follows" if len(others) == 1 else "problems follow"
        message += f" {len(others)} more {problems}."
    return param, message


def _place(error: Any, body: Any) -> Place:
    """Where in the request it is, without pydantic's names for kinds."""
    location: Sequence[str | int] = error["loc"]
    if location[0] != "body":
        return tuple(location[1:])
    place: list[str | int] = []
    value = body
    for part in location[1:]:
        if _has(value, part):
            value = value[part]
            place.append(part)
    if error["type"] == "missing":
        place.append(location[-1])
    return tuple(place)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _path(place: Place) -> str | None:
    """("messages", 0, "content") -> messages[0].content"""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or None


def _told(message: str) -> str:
    return message.removeprefix("Value error, ")
