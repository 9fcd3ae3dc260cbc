"""Whether the client is still there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from magistral_mlx.server.refusals import ClientGone

T = TypeVar("T")


async def gone(request: Request) -> None:
    """Return when the client has left. Its request must have been read by now."""
    with contextlib.suppress(RuntimeError):  # a response that has been sent ends it too
        while (await request.receive())["type"] != "http.disconnect":
            pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, or raises; it is cancelled when the client leaves.

    Raises:
        ClientGone: it has left.
    """
    task, left = asyncio.create_task(work), asyncio.create_task(gone(request))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone("the client has left.")
        return task.result()
    finally:
        task.cancel()
        left.cancel()
