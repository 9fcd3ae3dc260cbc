"""Between the endpoints and the models: `request.app.state.serving` answers prompts.

    async with serving.answer(request, model, prompt, options, endpoint=..., body=...) as exchange:
        async for event in exchange: ...

An endpoint that streams enters before it returns its response, so that a refusal that comes soon
still has a status of its own, and leaves when its stream ends, however that comes about.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.api.options import Options
from magistral_mlx.errors import InvalidOption, MagistralError
from magistral_mlx.hub import Progress
from magistral_mlx.runtime.progress import LoadProgress, OnProgress
from magistral_mlx.server.catalog import Catalog, ModelInfo, ServedModel
from magistral_mlx.server.clients import unless_gone
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.metrics import Metrics
from magistral_mlx.server.preparation import Preparation
from magistral_mlx.server.record import Recorder, exchange_record, log_exchange
from magistral_mlx.server.refusals import Busy, Unavailable
from magistral_mlx.server.settings import Settings
from magistral_mlx.server.shelf import STOPPING, Load, Shelf

_MOST_ANSWERS = 128  # to one prompt, as in OpenAI's API
_WAITING_BYTES = 1 << 30  # of images, which take memory while they wait
_REMEMBERED = 32  # answers whose duration tells when a place may be free


class Serving:
    """The models of a running server, and the answers that it is giving."""

    def __init__(
        self, settings: Settings, load: Load = Magistral.load, on_progress: OnProgress | None = None
    ) -> None:
        """Find the models, downloading what is missing; nothing is loaded yet.

        Args:
            load: what loads a model, as `Magistral.load` does.
            on_progress: called while files are downloaded, and in another thread while weights are
                read.

        Raises:
            MagistralError: a model that is not there, damaged, or does not fit; a folder for
                records that cannot be written to.
        """
        self.settings = settings
        self.catalog = Catalog(settings, _downloading(on_progress))
        self.shelf = Shelf(settings.load, settings.keep_alive, load, on_progress)
        self.preparation = Preparation(settings)
        self.metrics = Metrics(self)
        self._recorder = None if settings.record is None else Recorder(settings.record)
        self.failed: MagistralError | None = None  # why the first model could not be loaded
        self.first_load = asyncio.Event()  # set when it has been loaded, or failed
        self._loaded = False
        self._stopping = False
        self._exchanges: set[Exchange] = set()
        self._counting = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)

    # What there is

    def models(self) -> list[ModelInfo]:
        """The models by the names that requests give; the first is the one for none."""
        return [model.info for model in self.catalog]

    @property
    def ready(self) -> bool:
        """Whether a request would be answered: not while the first model loads, nor at the end."""
        return self._loaded and not (self._stopping or self.shelf.loading)

    @property
    def stopping(self) -> bool:
        """Whether the server is shutting down."""
        return self._stopping

    @property
    def running(self) -> int:
        """Answers that are being generated."""
        return sum(exchange.running for exchange in self._exchanges)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._exchanges) - self.running

    # Asking

    def answer(
        self,
        request: Request,
        model: str | None,
        prompt: PromptLike,
        options: Options,
        *,
        endpoint: str,
        body: Mapping[str, Any],
    ) -> Exchange:
        """The answer to `prompt`: an async context manager that gives the events, to `Finished`.

        Entering finds the model, loads it if need be, and queues the prompt. Leaving stops the
        answer within one token, and so does the client when it goes. Dicts in `prompt` cannot name
        files of this machine.

        Args:
            model: as the request names it; None for the first.
            endpoint: what the answer counts as in metrics and records, such as its path.
            body: the request as it came, for the record.

        Raises, when it is entered:
            UnknownModel: 404.
            Busy: 429, too many wait already.
            PromptError, ImageError, InvalidOption: 400.
            Unavailable: 503, the model cannot be loaded, or the server is shutting down.
        """
        return Exchange(self, request, model, prompt, options, endpoint=endpoint, body=body)

    async def count(
        self, request: Request, model: str | None, prompt: PromptLike, options: Options
    ) -> int:
        """Tokens of the prompt. The model's weights are not needed for that.

        Raises what entering `answer` raises, but for what concerns the weights.
        """
        served = self.catalog.find(model)
        self._check_queue()
        self._counting += 1
        try:
            return await unless_gone(request, self.preparation.count(served, prompt, options))
        finally:
            self._counting -= 1

    # For the exchanges

    def limited(self, options: Options) -> Options:
        """`options` within what this server allows."""
        if options.n > _MOST_ANSWERS:
            raise InvalidOption(f"n is {options.n}; it must be at most {_MOST_ANSWERS}.")
        most = self.settings.limits.tokens
        if most is None or (options.max_tokens is not None and options.max_tokens <= most):
            return options
        return replace(options, max_tokens=most)

    def admit(self, exchange: Exchange, model: str | None) -> ServedModel:
        """Let a request wait for its turn.

        Raises:
            UnknownModel: there is none of that name.
            Busy: too many wait already.
            Unavailable: the server is shutting down.
        """
        served = self.catalog.find(model)
        if self._stopping:
            raise Unavailable(STOPPING)
        self._check_queue()
        self._exchanges.add(exchange)
        return served

    def hold(self, exchange: Exchange, size: int) -> None:
        """Let its images, of `size` bytes, wait with it.

        Raises:
            Busy: those of others take too much already.
        """
        waiting = (other for other in self._exchanges if not other.running)
        held = sum(other.image_bytes for other in waiting)
        if size and held and held + size > _WAITING_BYTES:
            raise Busy(
                f"images of {held >> 20:,} MiB wait already, and there is no room for "
                f"{size >> 20:,} more. Come again later.",
                self._retry_after(),
            )
        exchange.image_bytes = size

    def _check_queue(self) -> None:
        """Raises Busy if too many wait already, those whose tokens are counted included."""
        waiting = self.waiting + self._counting
        if waiting >= self.settings.limits.queue:
            raise Busy(
                f"{waiting} requests wait already, as many as this server lets wait. Come again "
                "later.",
                self._retry_after(),
            )

    def leave(self, exchange: Exchange) -> None:
        """A request is over."""
        self._exchanges.discard(exchange)
        times = exchange.times
        if times.began is not None and times.ended is not None:
            self._durations.append(times.ended - times.began)

    async def note(self, exchange: Exchange, error: Exception | None) -> None:
        """Count, log and record an exchange that is over."""
        if exchange.times.first_token is not None:
            self.metrics.first_token(exchange.times.first_token)
        if exchange.times.began is not None and error is not None:
            self.metrics.failed()
        log_exchange(exchange, error, prompts=self.settings.log_prompts)
        if self._recorder is not None:
            await self._recorder.write(exchange_record(exchange, error))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something that outlives the request it came from."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _retry_after(self) -> int:
        """Seconds in which a place may become free, going by the last answers."""
        durations = self._durations
        mean = sum(durations) / len(durations) if durations else 1.0
        return min(60, max(1, math.ceil(mean)))

    # Beginning and end

    async def load(self) -> None:
        """Load the first model. What goes wrong is kept in `failed`."""
        try:
            async with self.shelf.lent(self.catalog.first):
                self._loaded = True
        except MagistralError as error:
            if not self._stopping:
                self.failed = error
        finally:
            self.first_load.set()

    async def drain(self, grace: float) -> None:
        """Take nothing more on, let running answers finish within `grace` seconds, then stop them.

        Those who still wait for their turn are refused at once.
        """
        self._stopping = True
        self.shelf.refuse()
        for exchange in self._exchanges:
            if not exchange.running:
                exchange.cancel()
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        self.stop()

    def stop(self) -> None:
        """Stop every answer within one token; their streams still end as they should."""
        self._stopping = True
        self.shelf.refuse()
        for exchange in self._exchanges:
            exchange.cancel()

    async def close(self) -> None:
        """Stop everything and give the memory back."""
        self.stop()
        while self._tasks:
            await asyncio.wait(list(self._tasks))
        self.preparation.close()
        await self.shelf.close()


def _downloading(report: OnProgress | None) -> Progress | None:
    """What tells `report` of the files that come from the hub."""
    if report is None:
        return None
    start = time.perf_counter()
    return lambda done, total: report(
        LoadProgress("download", done, total, time.perf_counter() - start)
    )
