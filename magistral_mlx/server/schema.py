"""What the schemas of all requests share."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_DEEPEST = 64  # far beyond what a request needs, and far below what a parser's stack bears

_LIST, _TABLE = 10_000, 1_024  # the most that lists and tables hold
_T = TypeVar("_T")


def _small(value: Any) -> Any:
    """pydantic looks at all that a dict holds before it counts."""
    if isinstance(value, dict) and len(value) > _TABLE:
        raise ValueError(f"it may hold {_TABLE:,} values, and holds {len(value):,}")
    return value


JSONObject = dict[str, Any]
# What is wrong with one of them is told once: a list of a million wrong ones must not cost much.
Many = Annotated[list[_T], Field(max_length=_LIST, fail_fast=True)]
Some = Annotated[Many[_T], Field(min_length=1)]
Table = Annotated[dict[str, _T], Field(max_length=_TABLE), BeforeValidator(_small)]


class Request(BaseModel):
    """A part of a request. Fields that nobody knows are left alone, as clients send many."""

    model_config = ConfigDict(extra="ignore")


class RequestBody(Request):
    """A whole one. What is no text, no number or nested too deeply is refused here.

    JSON as Python reads it may hold half of a surrogate pair, which cannot be encoded again, and
    NaN. Either would fail far from where it can be named.
    """

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_no_json(cls, value: Any) -> Any:
        level = [value]
        for _ in range(_DEEPEST):
            level = [inner for outer in level for inner in _inner(outer)]
            if not level:
                return value
        raise ValueError(f"it must not be nested deeper than {_DEEPEST} levels")


def _inner(value: Any) -> list[Any]:
    """What `value` holds, after a look at itself."""
    match value:
        case str():
            _check_text(value)
        case float():
            if not math.isfinite(value):
                raise ValueError("it must not hold NaN or Infinity")
        case dict():
            return [*value, *value.values()]
        case list():
            return value
    return []


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise ValueError(
            f"it must be Unicode text, and {half} is half of a surrogate pair"
        ) from None
