"""Streams of JSON lines over an answer that is being generated."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

from pydantic import BaseModel
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from magistral_mlx.events import Event
from magistral_mlx.server.error_responses import ErrorResponse, error_response
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.sse import HEADER_SECONDS, PING_SECONDS, json_text


class LineStream(StreamingResponse):
    """The response of an endpoint that streams lines. Make one with `lines_of`."""

    media_type = "application/x-ndjson"

    def __init__(self, stack: AsyncExitStack, content: Any) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, headers=headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The answer is stopped however the stream ends."""
        async with self._stack:
            await super().__call__(scope, receive, send)


async def lines_of(
    exchange: Exchange,
    write: Callable[[AsyncIterator[Event]], AsyncIterator[BaseModel]],
    *,
    fail: Callable[[ErrorResponse], BaseModel],
    ping: Callable[[], BaseModel],
) -> LineStream:
    """Enter `exchange`, and send its events as `write` formats them, a line each.

    The response begins when the answer does, or in HEADER_SECONDS, as `stream_of` does.

    Args:
        fail: formats an error as the last line.
        ping: a line that is sent while there is nothing else to send.

    Raises:
        MagistralError: what entering raises, before the response has begun.
    """
    async with AsyncExitStack() as stack:
        events = await stack.enter_async_context(exchange.within(HEADER_SECONDS))
        return LineStream(stack.pop_all(), _lines(write(events), fail, ping))
    raise AssertionError("the stack swallows nothing")


async def _lines(
    bodies: AsyncIterator[BaseModel],
    fail: Callable[[ErrorResponse], BaseModel],
    ping: Callable[[], BaseModel],
) -> AsyncIterator[str]:
    following: asyncio.Future[BaseModel] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(bodies))
            done, _ = await asyncio.wait({following}, timeout=PING_SECONDS)
            if not done:
                yield _line(ping())
                continue
            try:
                body = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield _line(body)
    except Exception as error:
        yield _line(fail(error_response(error)))
    finally:
        if following is not None:
            following.cancel()
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await following


def _line(body: BaseModel) -> str:
    return json_text(body) + "\n"
