"""Streams of server-sent events over an answer that is being generated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from magistral_mlx.events import Event
from magistral_mlx.server.error_responses import ErrorResponse, error_response
from magistral_mlx.server.exchange import Exchange

PING_SECONDS = 10.0  # proxies and clients that wait for the first token hang up after 30 or more
HEADER_SECONDS = 2.0  # in which an error still gets a status of its own
# Ends of lines besides \n and \r, which JSON escapes: some clients split a stream there.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
_PATIENCE = 10.0  # seconds for a stream to end by itself once its answer has been stopped


class EventStream(EventSourceResponse):
    """The response of an endpoint that streams. Make one with `stream_of`."""

    def __init__(self, stack: AsyncExitStack, content: Any, **options: Any) -> None:
        super().__init__(content, sep="\n", ping=PING_SECONDS, **options)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The answer is stopped however the stream ends."""
        async with self._stack:
            await super().__call__(scope, receive, send)


async def stream_of(
    exchange: Exchange,
    write: Callable[[AsyncIterator[Event]], AsyncIterator[BaseModel]],
    *,
    fail: Callable[[ErrorResponse], Iterable[BaseModel]],
    grace: float,
    done: str | None = None,
    ping: BaseModel | None = None,
) -> EventStream:
    """Enter `exchange`, and send its events as `write` formats them.

    The response begins when the answer does, or in HEADER_SECONDS: pings then keep the client
    while a model is loaded or others come first, and an error becomes an event.

    Args:
        fail: formats an error as the last events.
        grace: seconds in which an answer may end when the server is being stopped.
        done: data of the event after all others.
        ping: sent while there is nothing else to send; None for a comment.

    Raises:
        MagistralError: what entering raises, before the response has begun.
    """
    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(exchange.within(HEADER_SECONDS))
        return EventStream(
            stack.pop_all(),
            _send(write(events), fail, done),
            ping_message_factory=None if ping is None else partial(data, ping),
            shutdown_grace_period=grace + _PATIENCE,
        )
    raise AssertionError("the stack swallows nothing")


async def _send(
    bodies: AsyncIterator[BaseModel],
    fail: Callable[[ErrorResponse], Iterable[BaseModel]],
    done: str | None,
) -> AsyncIterator[ServerSentEvent]:
    try:
        async for body in bodies:
            yield data(body)
    except Exception as error:
        for body in fail(error_response(error)):
            yield data(body)
    if done is not None:
        yield ServerSentEvent(done, sep="\n")


def data(body: BaseModel) -> ServerSentEvent:
    """An event that carries JSON, without unset fields; the name of one with a type is its type."""
    return ServerSentEvent(json_text(body), event=getattr(body, "type", None), sep="\n")


def json_text(body: BaseModel) -> str:
    """JSON without unset fields, on what every client takes for one line."""
    return body.model_dump_json(exclude_unset=True).translate(_LINE_ENDS)
