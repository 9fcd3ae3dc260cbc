"""One request and its answer, from its place in the queue to the last event.

A task of the server's own reads the answer to its end, whoever listens; the endpoint reads what
that task passes on. So an answer is cancelled, counted and recorded in one place, whether its
reader stays, leaves, or never began to read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from magistral_mlx.api.async_stream import AsyncStream
from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.api.options import Options
from magistral_mlx.events import Event, Finished, Notice, Prefill
from magistral_mlx.runtime.result import Collector
from magistral_mlx.server.catalog import ServedModel
from magistral_mlx.server.clients import gone
from magistral_mlx.server.refusals import ClientGone, Unavailable
from magistral_mlx.server.shelf import STOPPING

if TYPE_CHECKING:
    from magistral_mlx.server.serving import Serving


@dataclass(frozen=True)
class _End:
    """The last item: all events have been passed on, or `error` came instead."""

    error: Exception | None


@dataclass
class Times:
    """Moments of one exchange, in seconds after it came; None for what has not happened."""

    came: float
    began: float | None = None
    first_token: float | None = None
    ended: float | None = None

    def now(self) -> float:
        return time.perf_counter() - self.came


class Exchange(AsyncIterator[Event]):
    """The events of one answer, to `Finished`. Make one with `Serving.answer`.

    model: the name of the one that answers, known once it is entered.
    created: seconds since 1970.
    seed: gives the same answer again.
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
        self.prompt = prompt
        self.image_bytes = 0  # that it takes while it waits, once they have been looked at
        self.options = options.seeded()
        self.times = Times(time.perf_counter())
        self.collected = Collector(self.seed)
        self.running = False  # its prompt is being read, or its answer generated
        self._serving = serving
        self._request = request
        self._stream: AsyncStream | None = None
        self._patience: float | None = None
        self._begun: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._out_of_time = False
        self._items: asyncio.Queue[Event | _End] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None

    @property
    def seed(self) -> int:
        assert self.options.seed is not None
        return self.options.seed

    # For the endpoint

    def within(self, seconds: float) -> Exchange:
        """This one, to be entered in so many seconds: what goes wrong later, the first event tells.

        For streams: a client that gets no header while a model is loaded hangs up.
        """
        self._patience = seconds
        return self

    async def __aenter__(self) -> Exchange:
        """Queue the prompt. Raises what `Serving.answer` says."""
        served = self._serving.admit(self, self.model)
        self.model = served.id
        self._watch = asyncio.create_task(self._watch_client())
        self._begun = begun = asyncio.get_running_loop().create_future()
        self._task = self._serving.spawn(self._run(served, begun))
        try:
            # The client may leave while the model is loaded.
            await asyncio.wait(
                {begun, self._watch}, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED
            )
            if begun.done():
                begun.result()
            elif self._watch.done():
                raise ClientGone("the client has left.")
        except BaseException:
            self._abandon()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._abandon()

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

    def _abandon(self) -> None:
        """Nobody waits for it any more: leave the queue too."""
        self.cancel()
        if self._task is not None and self._begun is not None and not self._begun.done():
            self._task.cancel()
            self._serving.leave(self)  # which a task that never ran does not

    # The server's own task

    async def _run(self, served: ServedModel, begun: asyncio.Future[None]) -> None:
        error: Exception | None = None
        try:
            prepare = self._serving.preparation
            options = self._serving.limited(self.options)
            prompt = await prepare.fetched(self.prompt)
            self._serving.hold(self, await prepare.check(prompt))
            async with self._serving.shelf.lent(served) as magistral:
                stream = magistral.astream(prepare.opened(prompt), options=options)
                await stream.begin(prepare.pool(prompt))
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
            self.running = False
            self.times.ended = self.times.now()
            self._serving.leave(self)
            self._items.put_nowait(_End(error))
            if not begun.done() and error is not None:
                begun.set_exception(error)
                begun.exception()  # a stream that has its headers reads it from the items
        await self._serving.note(self, error)

    async def _pass_on(self, stream: AsyncStream) -> None:
        timer: asyncio.TimerHandle | None = None
        try:
            async for event in stream:
                if self.times.began is None and isinstance(event, Finished):
                    self._refused()
                elif self.times.began is None:
                    self.times.began = self.times.now()
                    self.running = True
                    timer = self._start_timer()
                if isinstance(event, Finished):
                    event = self._finished(event)
                elif self.times.first_token is None and not isinstance(event, Prefill):
                    self.times.first_token = self.times.now()
                self.collected.add(event)
                self._items.put_nowait(event)
        finally:
            if timer is not None:
                timer.cancel()

    def _refused(self) -> None:
        """It was cancelled before its turn came, so there is no answer that could end."""
        if self._serving.stopping:
            raise Unavailable(STOPPING)
        raise ClientGone("the client has left.")

    def _finished(self, event: Finished) -> Finished:
        """At the time limit a client gets an answer that ended for its length."""
        if self._out_of_time and event.reason == "cancelled":
            seconds = self._serving.settings.limits.seconds
            self._items.put_nowait(Notice(f"The answer was ended after {seconds:g} seconds."))
            event = replace(event, reason="length")
        self._serving.metrics.finished(event)
        return event

    def _start_timer(self) -> asyncio.TimerHandle | None:
        seconds = self._serving.settings.limits.seconds
        if seconds is None:
            return None

        def out_of_time() -> None:
            self._out_of_time = True
            self.cancel()

        return asyncio.get_running_loop().call_later(seconds, out_of_time)

    async def _watch_client(self) -> None:
        """Stop the answer when the client goes."""
        await gone(self._request)
        self.cancel()
