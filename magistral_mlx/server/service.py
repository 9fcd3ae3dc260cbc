"""The generation service between endpoints and models: `request.app.state.service`.

    async with service.answer(request, model, prompt, options, endpoint=..., body=...) as exchange:
        async for event in exchange: ...

An endpoint that streams enters before it returns its response, so that an early refusal still has
a status of its own, and leaves when its stream ends, however that comes about.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.api.options import Options
from magistral_mlx.errors import MagistralError
from magistral_mlx.hub import DownloadProgress
from magistral_mlx.mcp.servers import MCPServers
from magistral_mlx.runtime.activity import MemoryUse
from magistral_mlx.runtime.progress import LoadProgress, OnProgress
from magistral_mlx.server.admission_queue import AdmissionQueue
from magistral_mlx.server.exchange import Exchange, ServerParts, unless_disconnected
from magistral_mlx.server.metrics import Metrics, ServerState
from magistral_mlx.server.model_info import ModelInfo
from magistral_mlx.server.model_pool import Load, ModelPool
from magistral_mlx.server.model_registry import ModelRegistry
from magistral_mlx.server.preprocessing import Preprocessor
from magistral_mlx.server.settings import Settings
from magistral_mlx.server.trace_recorder import TraceRecorder


class GenerationService:
    """The models of a running server, and the answers in progress."""

    def __init__(
        self, settings: Settings, load: Load = Magistral.load, on_progress: OnProgress | None = None
    ) -> None:
        """Find the models, downloading what is missing; nothing is loaded yet.

        Args:
            load: loads a model, as `Magistral.load` does.
            on_progress: called while files are downloaded, and in another thread while weights are
                read.

        Raises:
            MagistralError: a model that is missing, damaged, or does not fit; a folder for traces
                that cannot be written to.
        """
        self.settings = settings
        self.registry = ModelRegistry(settings, _download_progress(on_progress))
        self.pool = ModelPool(settings.load, settings.keep_alive, load, on_progress)
        self.preprocessor = Preprocessor(settings)
        self.queue = AdmissionQueue(settings.limits.queue)
        self.metrics = Metrics(self._state)
        self.load_error: MagistralError | None = None  # of the first model, or an MCP server
        self.first_load = asyncio.Event()  # set when the first model was loaded, or failed to
        self.mcp = MCPServers(settings.mcp)
        self.mcp_settled = asyncio.Event()  # set when `mcp` is connected, or failed to
        self._mcp_task: asyncio.Task[None] | None = None
        self._loaded = False
        self._parts = ServerParts(
            settings,
            self.registry,
            self.pool,
            self.preprocessor,
            self.queue,
            self.metrics,
            None if settings.traces is None else TraceRecorder(settings.traces),
        )

    # State

    def models(self) -> list[ModelInfo]:
        """The models by the names that requests give; the first one is the default."""
        return [info for model in self.registry for info in model.infos]

    @property
    def ready(self) -> bool:
        """Whether a request would be answered: not during the first load, nor at shutdown."""
        return self._loaded and not (self.queue.stopping or self.pool.loading)

    def _state(self) -> ServerState:
        resident = self.pool.resident
        memory = MemoryUse() if resident is None else resident.activity.memory
        return ServerState(self.queue.running, self.queue.waiting, self.models(), memory)

    # Requests

    def answer(
        self,
        request: Request,
        model: str | None,
        prompt: PromptLike,
        options: Options,
        *,
        endpoint: str,
        body: Mapping[str, Any],
        keep_alive: float | None = None,
    ) -> Exchange:
        """Answer `prompt`: an async context manager that yields the events, to `Finished`.

        Entering finds the model, loads it if need be, and queues the prompt. Leaving stops the
        answer within one token, and so does a disconnect of the client. Dicts in `prompt` cannot
        name files of this machine.

        Args:
            model: the name in the request; None for the first model.
            endpoint: label of the answer in metrics and traces, such as its path.
            body: the request as received, for the trace.
            keep_alive: as `ModelPool.use` takes it.

        Raises, when it is entered:
            UnknownModel: 404.
            Busy: 429, the queue is full.
            PromptError, ImageError, InvalidOption: 400.
            Unavailable: 503, the model cannot be loaded, or the server is shutting down.
        """
        return Exchange(
            self._parts,
            request,
            model,
            prompt,
            options,
            endpoint=endpoint,
            body=body,
            keep_alive=keep_alive,
        )

    async def load(self, request: Request, model: str | None, keep_alive: float | None) -> str:
        """Load a model, and let it go after `keep_alive` seconds without a request -> its name.

        Raises what entering `answer` raises, but for what concerns a prompt.
        """
        served = self.registry.find(model)

        async def load() -> None:
            async with self.pool.use(served, keep_alive):
                pass

        await unless_disconnected(request, load())
        return served.id

    async def count(
        self, request: Request, model: str | None, prompt: PromptLike, options: Options
    ) -> int:
        """Count the tokens of the prompt. Raises what `tokenize` raises."""
        return len(await self.tokenize(request, model, prompt, options))

    async def tokenize(
        self, request: Request, model: str | None, prompt: PromptLike, options: Options
    ) -> list[int]:
        """Encode the prompt, for which the model need not be loaded.

        Raises what entering `answer` raises, but for what concerns the weights.
        """
        served = self.registry.find(model)
        with self.queue.count():
            encoding = self.preprocessor.tokenize(served, prompt, options)
            return (await unless_disconnected(request, encoding)).tolist()

    # Start and shutdown

    def start(self) -> None:
        """Begin to load the first model, and to connect to MCP servers.

        `first_load` is set when the one ends, and `mcp_settled` when the other does.
        """
        self._parts.spawn(self._load_first())
        self._mcp_task = asyncio.create_task(self._hold_mcp())

    async def _hold_mcp(self) -> None:
        """Connect to the MCP servers, and hold the connections until this task is cancelled."""
        try:
            if self.settings.mcp:
                async with self.mcp:
                    self.mcp_settled.set()
                    await asyncio.Event().wait()
        except MagistralError as error:
            if not self.queue.stopping:
                self.load_error = error
                self.first_load.set()
        finally:
            self.mcp_settled.set()

    async def _load_first(self) -> None:
        try:
            async with self.pool.use(self.registry.first):
                self._loaded = True
        except MagistralError as error:
            if not self.queue.stopping:
                self.load_error = error
        finally:
            self.first_load.set()

    async def drain(self, grace: float) -> None:
        """Shut down: refuse waiting requests, and stop running answers after `grace` seconds."""
        self.pool.refuse()
        self.queue.stop(running=False)
        tasks = list(self._parts.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        self.stop()

    def stop(self) -> None:
        """Stop every answer within one token; their streams still end as they should."""
        self.pool.refuse()
        self.queue.stop(running=True)

    async def close(self) -> None:
        """Stop everything, end the MCP servers, and unload the model."""
        self.stop()
        while self._parts.tasks:
            await asyncio.wait(list(self._parts.tasks))
        if self._mcp_task is not None:
            self._mcp_task.cancel()
            await asyncio.wait([self._mcp_task])
        self.preprocessor.close()
        await self.pool.close()


def _download_progress(report: OnProgress | None) -> DownloadProgress | None:
    """A callback for downloads from the hub that reports to `report`."""
    if report is None:
        return None
    start = time.perf_counter()
    return lambda done, total: report(
        LoadProgress("download", done, total, time.perf_counter() - start)
    )
