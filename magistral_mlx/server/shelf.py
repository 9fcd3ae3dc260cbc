"""The models that a server was given: described without their weights, one in memory at a time.

Requests are served in the order in which they come. One for another model than the resident one
waits until the answers before it are done; then the models are exchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.errors import MagistralError
from magistral_mlx.runtime.progress import LoadProgress, OnProgress
from magistral_mlx.server.catalog import ServedModel
from magistral_mlx.server.refusals import Unavailable

Load = Callable[..., Magistral]  # Magistral.load, or what a test puts in its place
STOPPING = "the server is shutting down."


@dataclass(eq=False)
class _Waiting:
    model: ServedModel
    granted: asyncio.Future[Magistral]


class Shelf:
    """Lends the models out. Everything in here runs on the event loop's thread."""

    def __init__(
        self,
        options: LoadOptions,
        keep_alive: float | None,
        load: Load = Magistral.load,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._options = options
        self._keep_alive = keep_alive
        self._load = load
        self._on_progress = on_progress
        self._resident: ServedModel | None = None
        self._loading = False
        self._users = 0
        self._waiting: deque[_Waiting] = deque()
        self._moving = asyncio.Lock()  # held while a model is loaded or closed
        self._settling: set[asyncio.Task[None]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()  # read by the thread that loads

    @property
    def resident(self) -> Magistral | None:
        """The model in memory, if there is one."""
        return self._resident.magistral if self._resident else None

    @property
    def loading(self) -> bool:
        return self._loading

    @asynccontextmanager
    async def lent(self, model: ServedModel) -> AsyncIterator[Magistral]:
        """Keep `model` in memory inside, loading it first if need be.

        Raises:
            Unavailable: it cannot be loaded, or the server is shutting down.
        """
        magistral = await self._borrow(model)
        try:
            yield magistral
        finally:
            self._give_back()

    def refuse(self) -> None:
        """Lend nothing more: stop loading, and refuse those who wait."""
        self._stopping.set()
        self._cancel_timer()
        for waiting in self._waiting:
            _refuse(waiting, Unavailable(STOPPING))

    async def close(self) -> None:
        """Refuse those who wait, and give the memory back."""
        self.refuse()
        async with self._moving:
            await self._unload()

    # Lending

    async def _borrow(self, model: ServedModel) -> Magistral:
        if self._stopping.is_set():
            raise Unavailable(STOPPING)
        self._cancel_timer()
        waiting = _Waiting(model, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._settle_soon()
        try:
            return await waiting.granted
        except asyncio.CancelledError:
            granted = waiting.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._give_back()  # it was granted while the borrower left
            raise
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._settle_soon()

    def _give_back(self) -> None:
        self._users -= 1
        self._settle_soon()

    def _settle_soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self._settle())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _settle(self) -> None:
        """Grant what can be granted, in order; then let an idle model rest."""
        async with self._moving:
            while self._waiting:
                first = self._waiting[0]
                if not first.granted.done():
                    if not await self._ready(first.model):
                        return
                    if not first.granted.done():  # nor while it was loaded
                        self._users += 1
                        assert first.model.magistral is not None
                        first.granted.set_result(first.model.magistral)
                with contextlib.suppress(ValueError):
                    self._waiting.remove(first)
            if not self._users:
                self._rest()

    async def _ready(self, model: ServedModel) -> bool:
        """Have `model` in memory; False while it must wait for answers of another one."""
        if self._resident is model:
            return True
        if self._users:
            return False
        await self._unload()
        try:
            await self._load_now(model)
        except Exception as error:
            kind = "" if isinstance(error, MagistralError) else f"{type(error).__name__}: "
            reason = f"{model.id} could not be loaded: {kind}{model.told(error)}"
            for waiting in [waiting for waiting in self._waiting if waiting.model is model]:
                _refuse(waiting, Unavailable(reason))
        return True

    # Loading and unloading

    async def _load_now(self, model: ServedModel) -> None:
        def report(progress: LoadProgress) -> None:  # in the thread that loads
            if self._stopping.is_set():
                raise Unavailable(STOPPING)
            if self._on_progress:
                self._on_progress(progress)

        self._loading = True
        try:
            model.magistral = await asyncio.to_thread(
                self._load, model.source, options=self._options, on_progress=report
            )
        finally:
            self._loading = False
        self._resident = model

    async def _unload(self) -> None:
        model, self._resident = self._resident, None
        if model is not None and model.magistral is not None:
            await model.magistral.aclose()

    def _rest(self) -> None:
        """Nobody uses the model: unload it after a while."""
        self._cancel_timer()
        if self._keep_alive is None or self._resident is None or self._stopping.is_set():
            return
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._keep_alive, self._unload_soon)

    def _unload_soon(self) -> None:
        async def unload() -> None:
            async with self._moving:
                if not self._users and not self._waiting:
                    await self._unload()

        task = asyncio.get_running_loop().create_task(unload())
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    def _cancel_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


def _refuse(waiting: _Waiting, refusal: Unavailable) -> None:
    if not waiting.granted.done():
        waiting.granted.set_exception(refusal)
