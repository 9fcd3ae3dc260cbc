"""One request and its answer, from its place in the queue to the last event.

A task of the server's own reads the answer to its end, whoever listens; the endpoint reads what
that task passes on. So an answer is cancelled, counted and recorded in one place, whether its
reader stays, leaves, or never began to read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from magistral_mlx.api import AsyncStream, Options
from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.events import Event, Finished, Notice
from magistral_mlx.server.refusals import ClientGone

if TYPE_CHECKING:
    from magistral_mlx.server.serving import Serving


class _End:
    """The last item: all events have been passed on, or `error` came instead."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class Exchange(AsyncIterator[Event]):
    """The events of one answer, to `Finished`. Make one with `Serving.answer`.

    model: the name of the one that answers, known once it is entered.
    created: seconds since 1970.
    """

    def __init__(
        self,
        serving: Serving,
        request: Request,
        model: str | None,
        prompt: PromptLike,
        options: Options,
        *,
        endpoint: str,
        body: Mapping[str, Any],
    ) -> None:
        self.model = model or ""
        self.created = int(time.time())
        self.endpoint = endpoint
        self.body = body
        self.running = False  # its prompt is being read, or its answer generated
        self._serving = serving
        self._request = request
        self._prompt = prompt
        self._options = options
        self._stream: AsyncStream | None = None
        self._cancelled = False
        self._out_of_time = False
        self._begun: float | None = None
        self._items: asyncio.Queue[Event | _End] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None

    # For the endpoint

    async def __aenter__(self) -> Exchange:
        """Queue the prompt. Raises what `Serving.answer` says."""
        served = self._serving.admit(self, self.model)
        self.model = served.id
        self._watch = asyncio.create_task(self._watch_client())
        begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = self._serving.spawn(self._run(served, begun))
        try:
            # The client may leave, or the server stop, while the model is loaded.
            await asyncio.wait({begun, self._watch}, return_when=asyncio.FIRST_COMPLETED)
            if not begun.done():
                raise ClientGone("the client has left.")
            begun.result()
        except BaseException:
            self.cancel()
            if self._stream is None:
                task.cancel()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __aiter__(self) -> Exchange:
        return self

    async def __anext__(self) -> Event:
        """The next event.

        Raises:
            MagistralError: what went wrong while the answer was generated.
        """
        item = await self._items.get()
        if not isinstance(item, _End):
            return item
        self._items.put_nowait(_End(None))  # for whoever asks once more
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Stop the answer within one token. `Finished` still comes, if anything has begun."""
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    # The server's own task

    async def _run(self, served: Any, begun: asyncio.Future[None]) -> None:
        error: Exception | None = None
        try:
            async with self._serving.shelf.lent(served) as magistral:
                options = self._serving.limited(self._options)
                prompt = self._prompt
                if not isinstance(prompt, RawPrompt):
                    prompt = await asyncio.to_thread(self._serving.messages, prompt)
                stream = magistral.astream(prompt, options=options)
                await stream.begin()
                self._stream = stream
                if self._cancelled:  # while it began
                    stream.cancel()
                begun.set_result(None)
                await self._pass_on(stream)
        except Exception as caught:
            error = caught
        finally:
            if self._watch is not None:
                self._watch.cancel()
            self._end(begun, error)

    def _end(self, begun: asyncio.Future[None], error: Exception | None) -> None:
        seconds = None if self._begun is None else time.perf_counter() - self._begun
        self.running = False
        self._serving.leave(self, seconds)
        if error is not None and not begun.done():
            begun.set_exception(error)
        else:
            self._items.put_nowait(_End(error))

    async def _pass_on(self, stream: AsyncStream) -> None:
        timer: asyncio.TimerHandle | None = None
        try:
            async for event in stream:
                if self._begun is None:
                    self._begun = time.perf_counter()
                    self.running = True
                    timer = self._start_timer()
                if isinstance(event, Finished) and self._out_of_time:
                    event = self._cut_short(event)
                self._items.put_nowait(event)
        finally:
            if timer is not None:
                timer.cancel()

    # Limits

    def _start_timer(self) -> asyncio.TimerHandle | None:
        seconds = self._serving.settings.limits.seconds
        if seconds is None:
            return None

        def out_of_time() -> None:
            self._out_of_time = True
            self.cancel()

        return asyncio.get_running_loop().call_later(seconds, out_of_time)

    def _cut_short(self, event: Finished) -> Finished:
        """What a client gets at the time limit: an answer that ended for its length."""
        if event.reason != "cancelled":
            return event
        seconds = self._serving.settings.limits.seconds
        self._items.put_nowait(Notice(f"The answer was ended after {seconds:g} seconds."))
        return Finished("length", event.stats)

    async def _watch_client(self) -> None:
        """Stop the answer when the client goes. Its request has been read by now."""
        with contextlib.suppress(RuntimeError):  # a response that has been sent ends it too
            while (await self._request.receive())["type"] != "http.disconnect":
                pass
        self.cancel()
