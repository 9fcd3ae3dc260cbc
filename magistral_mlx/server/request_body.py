"""Bodies of requests: bounded JSON, and the base of all request schemas.

What a body costs goes by the number of its values, not by its bytes: an image is one long text. So
the values are counted first, which takes no time, and validation stays short.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Annotated, Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from magistral_mlx.server.errors import BadRequest, InvalidJSON

_DEEPEST = 64  # far beyond what a request needs, and far below what a parser's stack bears

_LIST, _TABLE = 10_000, 1_024  # entries of lists and tables at most
# More than a context of token ids has. Punctuation within texts counts too, which does not matter:
# a text with so much of it would not fit into any context.
_MOST_VALUES = 500_000
_T = TypeVar("_T")
# What curl and others call a body unless they are told its type, and what tells of a browser.
_UNMARKED = ("application/x-www-form-urlencoded", "text/plain")
_BROWSERS = ("origin", "referer", "sec-fetch-site")


def _small(value: Any) -> Any:
    """Count before pydantic validates every entry."""
    if isinstance(value, dict) and len(value) > _TABLE:
        raise ValueError(f"it may hold {_TABLE:,} values, and holds {len(value):,}")
    return value


JSONObject = dict[str, Any]
# They fail at the first wrong entry: a list of a million wrong ones must not cost much.
Many = Annotated[list[_T], Field(max_length=_LIST, fail_fast=True)]
NonEmptyText = Annotated[str, Field(min_length=1)]
Some = Annotated[Many[_T], Field(min_length=1)]
Table = Annotated[dict[str, _T], Field(max_length=_TABLE), BeforeValidator(_small)]


class RequestSchema(BaseModel):
    """Base of all parts of requests. Unknown fields are ignored, as clients send many."""

    model_config = ConfigDict(extra="ignore")


class RequestBody(RequestSchema):
    """Base of all bodies. Refuses invalid text, NaN and deep nesting.

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
    """Check `value` itself -> the values inside it."""
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


class JSONRoute(APIRoute):
    """Route whose body, if it takes one, is bounded JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle(request: Request) -> Response:
            request = _marked_as_json(request)
            await _read_json(request)
            return await handler(request)

        return handle


def _marked_as_json(request: Request) -> Request:
    """`request` with the type of JSON in place of what clients send without a thought.

    That is what a web page can send without asking first, so a browser has to mark JSON as such.
    """
    headers = request.headers
    kind = _content_type(headers.get("content-type", ""))
    if kind not in _UNMARKED or any(name in headers for name in _BROWSERS):
        return request
    others = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    marked = [*others, (b"content-type", b"application/json")]
    return Request({**request.scope, "headers": marked}, request.receive)


async def _read_json(request: Request) -> None:
    """Parse the body, which the request then keeps.

    Raises:
        BadRequest: not marked as JSON, or too many values.
        InvalidJSON: malformed JSON.
    """
    body = await request.body()
    if not body:
        return  # the schema says what is missing
    if not _is_json(request.headers.get("content-type", "")):
        raise BadRequest(
            'the body is not marked as JSON. Send it with the header "Content-Type: '
            'application/json".'
        )
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise BadRequest(f"the body holds more than {_MOST_VALUES:,} values. Send fewer.")
    try:
        await request.json()
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidJSON(f"the body is not JSON: {error.msg} ({where}).") from None
    except UnicodeDecodeError as error:
        raise InvalidJSON(
            f"the body is not JSON: its byte {error.start} is not UTF-8 text."
        ) from None
    except RecursionError:
        raise InvalidJSON(
            "the body is not JSON that can be read: it is nested too deeply."
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise InvalidJSON(f"the body is not JSON that can be read: {error}.") from None


def _is_json(content_type: str) -> bool:
    main, _, sub = _content_type(content_type).partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def _content_type(header: str) -> str:
    """The type that a header names; text/plain for none."""
    message = Message()
    message["content-type"] = header
    return message.get_content_type()
