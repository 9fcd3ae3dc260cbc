"""The events of one answer, for threads; `async_stream` is for asyncio."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from magistral_mlx.events import Event
from magistral_mlx.runtime.request import End, Observer, Request
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
        self._items: SimpleQueue[Event | End] = SimpleQueue()
        self.request = submit(self._items.put)
        self._ended = False
        # A stream that nobody holds any more frees the worker.
        weakref.finalize(self, self.request.cancel).atexit = False

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
