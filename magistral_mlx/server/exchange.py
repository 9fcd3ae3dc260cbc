"""One request and its answer, from its place in the queue to the last event.

A task of the server's own reads the answer to its end, whoever listens; the endpoint reads what
that task passes on. So an answer is cancelled, counted and traced in one place, whether its reader
stays, leaves, or never began to read.

The file is longer than others because one object owns an answer from its arrival to its trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

from starlette.requests import Request

from magistral_mlx.api.async_stream import AsyncStream
from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.api.options import Options
from magistral_mlx.events import Event, Finished, Notice
from magistral_mlx.server.admission_queue import STOPPING, AdmissionQueue, QueuedRequest
from magistral_mlx.server.errors import ClientGone, Unavailable
from magistral_mlx.server.metrics import Metrics
from magistral_mlx.server.model_pool import ModelPool
from magistral_mlx.server.model_registry import ModelRegistry, ServedModel
from magistral_mlx.server.preprocessing import Preprocessor
from magistral_mlx.server.settings import Settings
from magistral_mlx.server.trace_recorder import ExchangeTrace, TraceRecorder, log_exchange

T = TypeVar("T")


@dataclass(frozen=True)
class ServerParts:
    """The parts of a server that its exchanges use. `tasks` outlive the requests they come from."""

    settings: Settings
    registry: ModelRegistry
    pool: ModelPool
    preprocessor: Preprocessor
    queue: AdmissionQueue
    metrics: Metrics
    recorder: TraceRecorder | None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as a task of the server's own."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


@dataclass(frozen=True)
class _End:
    """The last item: all events have been passed on, or `error` came instead."""

    error: Exception | None


class Exchange(AsyncIterator[Event]):
    """The events of one answer, to `Finished`. Make one with `GenerationService.answer`.

    model: the name of the model that answers, known once it is entered.
    created: seconds since 1970.
    """

    def __init__(
        self,
        parts: ServerParts,
        request: Request,
        model: str | None,
        prompt: PromptLike,
        options: Options,
        *,
        endpoint: str,
        body: Mapping[str, Any],
        keep_alive: float | None = None,
    ) -> None:
        self.model = model or ""
        self.created = int(time.time())
        self.options = options.seeded()
        self._arrived = time.perf_counter()
        self._endpoint = endpoint
        self._body = body
        self._keep_alive = keep_alive
        self._prompt = prompt
        self._parts = parts
        self._request = request
        self._queued: QueuedRequest | None = None
        self._stream: AsyncStream | None = None
        self._timeout: float | None = None
        self._begun: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._timed_out = False
        self._items: asyncio.Queue[Event | _End] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None

    @property
    def seed(self) -> int:
        """The seed of the first answer, given or drawn."""
        assert self.options.seed is not None
        return self.options.seed

    # For the endpoint

    def prompt_token_ids(self) -> list[int]:
        """The ids of the prompt, once the answer has begun."""
        assert self._queued is not None and self._queued.request is not None
        return self._queued.request.inputs.prompt.tokens.tolist()

    def within(self, seconds: float) -> Exchange:
        """Bound the time of entering; later failures are raised by the first event.

        For streams: a client that gets no header while a model is loaded hangs up.
        """
        self._timeout = seconds
        return self

    async def __aenter__(self) -> Exchange:
        """Queue the prompt. Raises what `GenerationService.answer` says."""
        served, adapter = self._parts.registry.resolve(self.model)
        self._queued = self._parts.queue.admit(self.cancel)
        self.model = served.name_with(adapter)
        if adapter is not None:
            self.options = replace(self.options, adapter=adapter)
        self._watch = asyncio.create_task(self._watch_client())
        self._begun = begun = asyncio.get_running_loop().create_future()
        self._task = self._parts.spawn(self._run(served, self._queued, begun))
        try:
            # The client may leave while the model is loaded.
            await asyncio.wait(
                {begun, self._watch}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED
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
            MagistralError: a failure during generation.
        """
        item = await self._items.get()
        if not isinstance(item, _End):
            return item
        self._items.put_nowait(_End(None))  # for whoever asks once more
        if item.error is not None:
            raise item.error
        raise StopAsyncIteration

    def cancel(self) -> None:
        """Stop the answer within one token. `Finished` still comes if generation has begun."""
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def _abandon(self) -> None:
        """Cancel, and leave the queue if the answer has not begun."""
        self.cancel()
        if self._task is not None and self._begun is not None and not self._begun.done():
            self._task.cancel()
            self._leave_queue()  # which a task that never ran does not

    # The server's own task

    async def _run(
        self, served: ServedModel, queued: QueuedRequest, begun: asyncio.Future[None]
    ) -> None:
        parts, error = self._parts, None
        try:
            options = parts.preprocessor.limit(self.options)
            prompt = await parts.preprocessor.fetch_images(self._prompt)
            parts.queue.reserve_images(queued, await parts.preprocessor.check(prompt))
            async with parts.pool.use(served, self._keep_alive) as magistral:
                messages = parts.preprocessor.open_images(prompt)
                stream = magistral.astream(messages, options=options)
                await stream.begin(parts.preprocessor.executor(prompt))
                self._stream, queued.request = stream, stream.request
                if self._cancelled:  # while it began
                    stream.cancel()
                begun.set_result(None)
                await self._pass_on(stream, queued)
        except Exception as caught:
            error = caught
        finally:
            if self._watch is not None:
                self._watch.cancel()
            self._leave_queue()
            self._items.put_nowait(_End(error))
            if not begun.done() and error is not None:
                begun.set_exception(error)
                begun.exception()  # a stream that has its headers reads it from the items
        await self._trace(queued, error)

    async def _pass_on(self, stream: AsyncStream, queued: QueuedRequest) -> None:
        timer: asyncio.TimerHandle | None = None
        try:
            async for event in stream:
                if not queued.running:
                    raise self._refusal()
                timer = timer or self._start_timer()
                if isinstance(event, Finished):
                    event = self._finished(event)
                self._items.put_nowait(event)
        finally:
            if timer is not None:
                timer.cancel()

    def _refusal(self) -> Exception:
        """The error of a request that was cancelled before its turn."""
        if self._parts.queue.stopping:
            return Unavailable(STOPPING)
        return ClientGone("the client has left.")

    def _finished(self, event: Finished) -> Finished:
        """Count an end. One at the time limit is of the answer's length, for clients."""
        if self._timed_out and event.reason == "cancelled":
            seconds = self._parts.settings.limits.seconds
            self._items.put_nowait(Notice(f"The answer was ended after {seconds:g} seconds."))
            event = replace(event, reason="length")
        self._parts.metrics.finished(event)
        return event

    def _start_timer(self) -> asyncio.TimerHandle | None:
        seconds = self._parts.settings.limits.seconds
        if seconds is None:
            return None

        def time_out() -> None:
            self._timed_out = True
            self.cancel()

        return asyncio.get_running_loop().call_later(seconds, time_out)

    async def _watch_client(self) -> None:
        """Cancel when the client disconnects."""
        await disconnected(self._request)
        self.cancel()

    def _leave_queue(self) -> None:
        if self._queued is not None:
            self._parts.queue.remove(self._queued)

    async def _trace(self, queued: QueuedRequest, error: Exception | None) -> None:
        """Count, log and record the exchange once it is over."""
        parts = self._parts
        trace = ExchangeTrace(
            endpoint=self._endpoint,
            model=self.model,
            body=self._body,
            error=error,
            request=queued.request,
            timed_out=self._timed_out,
            arrived=self._arrived,
            ended=time.perf_counter(),
        )
        if trace.first_token is not None:
            parts.metrics.first_token(trace.first_token)
        if trace.waited is not None and error is not None:
            parts.metrics.failed()
        log_exchange(trace, prompts=parts.settings.log_prompts)
        if parts.recorder is not None:
            await parts.recorder.write(trace)


async def disconnected(request: Request) -> None:
    """Return when the client has disconnected. Its request must have been read by now."""
    with contextlib.suppress(RuntimeError):  # a response that has been sent ends it too
        while (await request.receive())["type"] != "http.disconnect":
            pass


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; it is cancelled when the client disconnects.

    Raises:
        ClientGone: the client has disconnected.
    """
    task, left = asyncio.create_task(work), asyncio.create_task(disconnected(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client has left.")
        return task.result()
    finally:
        task.cancel()
        left.cancel()
