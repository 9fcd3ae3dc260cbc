"""/health and /ready: for whoever keeps the server running."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from magistral_mlx.server.failures import OPENAI_RESPONSES
from magistral_mlx.server.refusals import Unavailable
from magistral_mlx.server.serving import Serving

router = APIRouter(tags=["operation"], responses=OPENAI_RESPONSES)


class Status(BaseModel):
    """The server is well."""

    status: Literal["ok"] = "ok"


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Whether the process is alive")
async def health() -> Status:
    return Status()


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Whether the model can answer")
async def ready(request: Request) -> Status:
    """503 while the model is being loaded and while the server shuts down.

    An idle model that was unloaded counts as ready: the next request loads it.
    """
    serving: Serving = request.app.state.serving
    if serving.failed is not None:
        raise Unavailable(f"the model could not be loaded: {serving.failed}")
    if not serving.ready:
        raise Unavailable("the model is being loaded, or the server is shutting down.")
    return Status()
