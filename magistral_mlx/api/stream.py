"""The events of one answer, for threads and for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

from magistral_mlx.api.answer import Answer, End, Sink
from magistral_mlx.api.result import Result
from magistral_mlx.events import Event

if TYPE_CHECKING:
    from magistral_mlx.api.magistral import Magistral

Start = Callable[[Sink], Answer]  # makes the prompt, and submits an answer that feeds the sink


class Stream(Iterator[Event]):
    """The events of one answer, in order; the last is `Finished`.

    for event in stream: ...      leaving the loop early stops the answer
    stream.result()               waits for the whole answer

    The answer is generated whether or not anybody reads it, until it ends, is cancelled, or the
    stream is dropped. A stream may be read in one thread and cancelled from another.
    """

    def __init__(self, owner: Magistral, start: Start) -> None:
        """Use `Magistral.stream`. Raises what `start` does."""
        self._owner = owner  # a model is not collected while it is being read from
        self._items: SimpleQueue[Event | End] = SimpleQueue()
        self._answer = start(self._items.put)
        self._ended = False
        # A stream that nobody holds any more frees the worker.
        weakref.finalize(self, self._answer.cancel).atexit = False

    def __next__(self) -> Event:
        """The next event.

        Raises:
            MagistralError: what went wrong while the answer was generated.
        """
        if self._ended:
            raise StopIteration
        item = self._items.get()
        if not isinstance(item, End):
            return item
        self._ended = True
        if item.error is not None:
            raise item.error
        raise StopIteration

    def __iter__(self) -> Iterator[Event]:
        """The events from here on. Leaving a loop over them stops the answer."""
        try:
            while True:
                try:
                    event = next(self)
                except StopIteration:
                    return
                yield event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop after the current token or part of the prompt, from any thread.

        `Finished` then comes with the reason "cancelled"; the result holds what there is. Nothing
        happens if the answer has ended.
        """
        self._answer.cancel()

    def result(self) -> Result:
        """Wait for the whole answer; after `cancel`, for what there is of it.

        Ctrl-C while it waits stops the answer. Raises what went wrong while it was generated.
        """
        try:
            return self._answer.wait()
        except KeyboardInterrupt:
            self.cancel()
            raise

    def close(self) -> None:
        """Stop the answer and forget it."""
        self.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[Event]):
    """The events of one answer, for `async for`. It begins with the first event asked for.

    Cancelling the task that reads it stops the answer, and so does dropping the stream. A loop
    that is left early while the stream is still held does not: use `async with`, or `cancel`.
    """

    def __init__(self, owner: Magistral, start: Start) -> None:
        """Use `Magistral.astream`. `start` may take a while: it runs in a helper thread."""
        self._owner = owner
        self._start = start
        self._items: asyncio.Queue[Event | End] = asyncio.Queue()
        self._answer: Answer | None = None
        self._ended = False
        self._cancelled = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises what `Stream` raises, and what makes no prompt."""
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._answer is None:
                await self._begin()
            item = await self._items.get()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if not isinstance(item, End):
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
        if self._answer is None:
            try:
                await self._begin(executor)
            except asyncio.CancelledError:
                self.cancel()
                raise

    def cancel(self) -> None:
        """Stop after the current token or part of the prompt, from any thread."""
        self._cancelled = True
        if self._answer is not None:
            self._answer.cancel()

    async def result(self) -> Result:
        """Read to the end -> the whole answer; after `cancel`, what there is of it."""
        async for _ in self:
            pass
        assert self._answer is not None
        return self._answer.wait()

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
            self._answer = self._start(sink)
            if self._cancelled:  # while it began
                self._answer.cancel()

        await loop.run_in_executor(executor, begin)
        assert self._answer is not None
        weakref.finalize(self, self._answer.cancel).atexit = False


def _into(
    loop: asyncio.AbstractEventLoop, items: asyncio.Queue[Event | End]
) -> Callable[[Event | End], None]:
    """A sink that hands items over to an event loop."""

    def sink(item: Event | End) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(items.put_nowait, item)

    return sink
