"""Loads and unloads models for requests, one in memory at a time.

Requests are served in order of arrival. One for another model than the resident one waits until
the answers before it are done; then the models are swapped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from magistral_mlx.api.disk_cache import DiskCacheConfig
from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.errors import MagistralError, RankLost
from magistral_mlx.runtime.progress import LoadProgress, OnProgress
from magistral_mlx.server.errors import Unavailable
from magistral_mlx.server.model_registry import ServedModel

Load = Callable[..., Magistral]  # Magistral.load, or a substitute in tests
_log = logging.getLogger("magistral_mlx.server")
STOPPING = "the server is shutting down."


@dataclass(eq=False)
class _Waiting:
    model: ServedModel
    granted: asyncio.Future[Magistral]


class ModelPool:
    """Keeps a model in memory while requests use it. Runs on the event loop's thread."""

    def __init__(
        self,
        options: LoadOptions,
        keep_alive: float | None,
        load: Load = Magistral.load,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._options = options
        self._default_keep_alive = self._keep_alive = keep_alive
        self._load = load
        self._on_progress = on_progress
        disk = DiskCacheConfig.of(options)
        self._disk_problem = None if disk is None else disk.problem()
        self._resident: ServedModel | None = None
        self._loading = False
        self._users = 0
        self._waiting: deque[_Waiting] = deque()
        self._swap_lock = asyncio.Lock()  # held while a model is loaded or closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()  # read by the thread that loads

    @property
    def resident(self) -> Magistral | None:
        """The model in memory, or None."""
        return self._resident.magistral if self._resident else None

    @property
    def lost(self) -> RankLost | None:
        """Why the model answers no more: a machine that computes it with this one is gone."""
        return None if self.resident is None else self.resident.session.lost

    @property
    def disk_problem(self) -> str | None:
        """Why prompts are not kept in --cache-dir, in a sentence; None where they are."""
        self._check_disk()
        return self._disk_problem

    def _check_disk(self) -> None:
        """Log, once, that the disk cache has given up."""
        magistral = self.resident
        found = None if magistral is None else magistral.activity.disk_problem
        if found is not None and self._disk_problem is None:
            _log.warning("%s", found)
            self._disk_problem = found

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the model goes if it stays idle; None for never."""
        if self._idle_timer is not None:
            return max(0.0, self._idle_timer.when() - asyncio.get_running_loop().time())
        return (
            None if self._keep_alive is None or math.isinf(self._keep_alive) else self._keep_alive
        )

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded."""
        return self._loading

    @asynccontextmanager
    async def use(
        self, model: ServedModel, keep_alive: float | None = None
    ) -> AsyncIterator[Magistral]:
        """Keep `model` in memory inside, loading it first if need be.

        Args:
            keep_alive: seconds after which it may go once it is idle, `inf` for never; None for
                what the server was started with.

        Raises:
            Unavailable: it cannot be loaded, or the server is shutting down.
        """
        magistral = await self._acquire(model)
        self._keep_alive = self._default_keep_alive if keep_alive is None else keep_alive
        try:
            yield magistral
        finally:
            self._release()

    def refuse(self) -> None:
        """Stop loading, and refuse the waiting requests and all later ones."""
        self._stopping.set()
        self._cancel_timer()
        for waiting in self._waiting:
            _refuse(waiting, Unavailable(STOPPING))

    async def close(self) -> None:
        """Refuse the waiting requests and unload the model."""
        self.refuse()
        async with self._swap_lock:
            await self._unload()

    # Users of the model

    async def _acquire(self, model: ServedModel) -> Magistral:
        if self._stopping.is_set():
            raise Unavailable(STOPPING)
        self._cancel_timer()
        waiting = _Waiting(model, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._schedule_grants()
        try:
            return await waiting.granted
        except asyncio.CancelledError:
            granted = waiting.granted
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                self._release()  # granted while its request was cancelled
            raise
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._schedule_grants()

    def _release(self) -> None:
        self._users -= 1
        self._check_disk()
        self._schedule_grants()

    def _schedule_grants(self) -> None:
        task = asyncio.get_running_loop().create_task(self._grant_waiting())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _grant_waiting(self) -> None:
        """Grant waiting requests in order; then start the idle timer."""
        async with self._swap_lock:
            while self._waiting:
                first = self._waiting[0]
                if not first.granted.done():
                    if not await self._make_resident(first.model):
                        return
                    if not first.granted.done():  # nor while it was loaded
                        self._users += 1
                        assert first.model.magistral is not None
                        first.granted.set_result(first.model.magistral)
                with contextlib.suppress(ValueError):
                    self._waiting.remove(first)
            if not self._users:
                self._start_idle_timer()

    async def _make_resident(self, model: ServedModel) -> bool:
        """Load `model` if need be; False while answers of another model are running."""
        if self._resident is model:
            return True
        if self._users:
            return False
        await self._unload()
        try:
            await self._load_now(model)
        except Exception as error:
            kind = "" if isinstance(error, MagistralError) else f"{type(error).__name__}: "
            reason = f"{model.id} could not be loaded: {kind}{model.public_message(error)}"
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
                self._load,
                model.source,
                options=replace(self._options, adapters=model.adapters),
                on_progress=report,
            )
        finally:
            self._loading = False
        self._resident = model

    async def _unload(self) -> None:
        model, self._resident = self._resident, None
        if model is not None and model.magistral is not None:
            await model.magistral.aclose()
            model.unloaded()

    def _start_idle_timer(self) -> None:
        """Unload the unused model after `keep_alive` seconds."""
        self._cancel_timer()
        never = self._keep_alive is None or math.isinf(self._keep_alive)
        if never or self._resident is None or self._stopping.is_set():
            return
        assert self._keep_alive is not None
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(self._keep_alive, self._unload_soon)

    def _unload_soon(self) -> None:
        async def unload() -> None:
            async with self._swap_lock:
                if not self._users and not self._waiting:
                    await self._unload()

        task = asyncio.get_running_loop().create_task(unload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _cancel_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


def _refuse(waiting: _Waiting, refusal: Unavailable) -> None:
    if not waiting.granted.done():
        waiting.granted.set_exception(refusal)
