"""The events of one answer, for asyncio; importing it costs what importing asyncio does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from types import TracebackType

from magistral_mlx.api.stream import Submit
from magistral_mlx.errors import StreamInUse
from magistral_mlx.events import Event
from magistral_mlx.runtime.request import Request, RequestEnd
from magistral_mlx.runtime.result import Result


class AsyncStream(AsyncIterator[Event]):
    """The events of one answer, for `async for`. It begins with the first event asked for.

    Cancelling the task that reads it stops the answer, and so does dropping the stream. A loop
    that is left early while the stream is still held does not: use `async with`, or `cancel`.

    request: the request that is read; None until it has been queued.
    """

    def __init__(self, owner: object, submit: Submit) -> None:
        """Use `Magistral.astream`. `submit` may take a while: it runs in a helper thread."""
        self._owner = owner
        self._submit = submit
        self._items: asyncio.Queue[Event | RequestEnd] = asyncio.Queue()
        self.request: Request | None = None
        self._ended = self._reading = False
        self._cancelled = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises what `Stream.next` raises, and what makes no prompt."""
        if self._reading:
            raise StreamInUse(
                "another task is reading this stream, and each event comes once. Read it in one "
                "task, or let `request.subscribe` call a function with every event."
            )
        if self._ended:
            raise StopAsyncIteration
        self._reading = True
        try:
            if self.request is None:
                await self._begin()
            item = await self._items.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            self._reading = False
        if not isinstance(item, RequestEnd):
            return item
        self._ended = True
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    async def begin(self, executor: Executor | None = None) -> None:
        """Queue it now, not with the first event asked for. Raises what makes no prompt.

        Args:
            executor: where the prompt is made; None for the loop's own threads.
        """
        if self.request is None:
            try:
                await self._begin(executor)
            except asyncio.CancelledError:
                self.cancel()
                raise

    def cancel(self) -> None:
        """Stop after the current token or part of the prompt, from any thread."""
        self._cancelled = True
        if self.request is not None:
            self.request.cancel()

    async def result(self) -> Result:
        """Read to the end -> the whole answer; after `cancel`, what there is of it."""
        async for _ in self:
            pass
        assert self.request is not None
        return self.request.wait()

    async def aclose(self) -> None:
        """Stop the answer and forget it."""
        self.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _begin(self, executor: Executor | None = None) -> None:
        loop = asyncio.get_running_loop()
        sink = _into(loop, self._items)

        def begin() -> None:
            self.request = self._submit(sink)
            if self._cancelled:  # while it began
                self.request.cancel()

        await loop.run_in_executor(executor, begin)
        assert self.request is not None
        self.request.cancel_without(self)


def _into(
    loop: asyncio.AbstractEventLoop, items: asyncio.Queue[Event | RequestEnd]
) -> Callable[[Event | RequestEnd], None]:
    """A sink that hands items over to an event loop."""

    def sink(item: Event | RequestEnd) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(items.put_nowait, item)

    return sink
