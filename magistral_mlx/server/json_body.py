"""Bodies of requests as JSON, bounded before anything is made of them.

What a body costs goes by how many values it holds, not by its bytes: an image is one long text. So
the values are counted first, which takes no time, and what follows stays short.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from magistral_mlx.server.refusals import BadRequest, InvalidJSON

# More than a context of token ids has. Punctuation within texts counts too, which does not matter:
# a text with so much of it would not fit into any context.
_MOST_VALUES = 500_000


class JSONRoute(APIRoute):
    """A route whose body, if it takes one, is JSON. What is not gets one kind of error."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def handle(request: Request) -> Response:
            await _read(request)
            return await handler(request)

        return handle


async def _read(request: Request) -> None:
    """Parse the body, which the request then keeps.

    Raises:
        BadRequest: it is something else, or holds too much.
        InvalidJSON: it says it is JSON, and is not.
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
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    is_json = subtype == "json" or subtype.endswith("+json")
    return message.get_content_maintype() == "application" and is_json
