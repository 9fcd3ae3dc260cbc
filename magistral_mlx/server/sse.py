"""Streams of server-sent events over an answer that is being generated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from magistral_mlx.events import Event
from magistral_mlx.server.exchange import Exchange

PING_SECONDS = 10.0  # proxies and clients that wait for the first token hang up after 30 or more
HEADER_SECONDS = 2.0  # in which what is wrong with a request still gets a status of its own
_PATIENCE = 10.0  # seconds for a stream to end by itself once its answer has been stopped


class EventStream(EventSourceResponse):
    """The response of an endpoint that streams. Make one with `stream_of`."""

    def __init__(self, stack: AsyncExitStack, content: Any, **options: Any) -> None:
        super().__init__(content, sep="\n", ping=PING_SECONDS, **options)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The answer is left, and so stopped, however the stream ends."""
        async with self._stack:
            await super().__call__(scope, receive, send)


async def stream_of(
    exchange: Exchange,
    write: Callable[[AsyncIterator[Event]], AsyncIterator[ServerSentEvent]],
    *,
    grace: float,
    ping: Callable[[], ServerSentEvent] | None = None,
) -> EventStream:
    """Enter `exchange`, and send what `write` makes of its events.

    The response begins when the answer does, or in HEADER_SECONDS: pings then keep the client
    while a model is loaded or others come first, and what goes wrong becomes an event.

    Args:
        grace: seconds in which an answer may end when the server is being stopped.
        ping: what is sent while there is nothing to send; None for a comment.

    Raises:
        MagistralError: what entering raises, while a status can still tell of it.
    """
    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(exchange.within(HEADER_SECONDS))
        return EventStream(
            stack.pop_all(),
            write(events),
            ping_message_factory=ping,
            shutdown_grace_period=grace + _PATIENCE,
        )
    raise AssertionError("the stack swallows nothing")


def data(body: BaseModel | str, event: str | None = None) -> ServerSentEvent:
    """An event that carries JSON; what was not set in `body` is left out."""
    text = body if isinstance(body, str) else body.model_dump_json(exclude_unset=True)
    return ServerSentEvent(text, event=event, sep="\n")
