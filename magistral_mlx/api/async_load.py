"""Loading for asyncio: in a helper thread that stops when nobody waits for the model any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from magistral_mlx.errors import LoadAborted
from magistral_mlx.runtime.progress import LoadProgress, OnProgress


class Loaded(Protocol):
    """A loaded model."""

    async def aclose(self) -> None: ...


_Loaded = TypeVar("_Loaded", bound=Loaded)


async def load_in_thread(
    load: Callable[[OnProgress], _Loaded], on_progress: OnProgress | None
) -> _Loaded:
    """Run `load` in a helper thread, and `on_progress` in the event loop's."""
    loop = asyncio.get_running_loop()
    stop: list[BaseException] = []  # an exception that ends the load with its next report

    def call(progress: LoadProgress) -> None:
        if on_progress and not stop:
            try:
                on_progress(progress)
            except BaseException as error:
                stop.append(error)

    def report(progress: LoadProgress) -> None:
        if stop:
            raise stop[0]
        loop.call_soon_threadsafe(call, progress)

    try:
        loaded = await loop.run_in_executor(None, load, report)
    except asyncio.CancelledError:
        stop.append(LoadAborted("loading was cancelled."))
        raise
    if stop:
        await loaded.aclose()
        raise stop[0]
    return loaded
