"""The events of one answer, for threads; `async_stream` is for asyncio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

from magistral_mlx.errors import StreamInUse
from magistral_mlx.events import Event
from magistral_mlx.runtime.request import Observer, Request, RequestEnd
from magistral_mlx.runtime.result import Result

Submit = Callable[[Observer], Request]  # makes the prompt, and queues a request for the observer


class Stream(Iterator[Event]):
    """The events of one answer, in order; the last is `Finished`.

    for event in stream: ...      leaving the loop early stops the answer
    stream.result()               waits for the whole answer

    The answer is generated whether or not anybody reads it, until it ends, is cancelled, or the
    stream is dropped. A stream may be read in one thread and cancelled from another.

    request: the request that is read: its status, times, results and seed.
    """

    def __init__(self, owner: object, submit: Submit) -> None:
        """Use `Magistral.stream`. Raises what `submit` does."""
        self._owner = owner  # a model is not collected while it is being read from
        self._items: SimpleQueue[Event | RequestEnd] = SimpleQueue()
        self.request = submit(self._items.put)
        self._ended = False
        self._reading = threading.Lock()
        self.request.cancel_without(self)

    def next(self, timeout: float | None = None) -> Event | None:
        """The next event; None after the last.

        Args:
            timeout: seconds to wait for it; 0 takes one that is there, None waits for ever.

        Raises:
            TimeoutError: none has come; the stream goes on.
            StreamInUse: another thread is reading.
            MagistralError: what went wrong while the answer was generated.
        """
        if not self._reading.acquire(blocking=False):
            raise StreamInUse(
                "another thread is reading this stream, and each event comes once. Read it in one "
                "thread, or let `request.subscribe` call a function with every event."
            )
        try:
            if self._ended:
                return None
            item = self._items.get(timeout=timeout) if timeout else self._items.get(timeout is None)
        except Empty:
            raise TimeoutError(f"no event has come within {timeout:g} s.") from None
        finally:
            self._reading.release()
        if not isinstance(item, RequestEnd):
            return item
        self._ended = True
        if item.error is not None:
            raise item.error
        return None

    def __next__(self) -> Event:
        """The next event. Raises what `next` raises."""
        event = self.next()
        if event is None:
            raise StopIteration
        return event

    def __iter__(self) -> Iterator[Event]:
        """The events from here on. Leaving a loop over them stops the answer."""
        try:
            while (event := self.next()) is not None:
                yield event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Stop after the current token or part of the prompt, from any thread.

        `Finished` then comes with the reason "cancelled"; the result holds what there is. Nothing
        happens if the answer has ended.
        """
        self.request.cancel()

    def result(self) -> Result:
        """Wait for the whole answer; after `cancel`, for what there is of it.

        Ctrl-C while it waits stops the answer. Raises what went wrong while it was generated.
        """
        try:
            return self.request.wait()
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
