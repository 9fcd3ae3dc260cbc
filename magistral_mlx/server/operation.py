"""/health, /ready and /metrics: endpoints for the operation of the server."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.exposition import generate_latest
from pydantic import BaseModel, Field

from magistral_mlx.api.disk_cache import DiskCacheConfig
from magistral_mlx.server.error_responses import OPENAI_RESPONSES
from magistral_mlx.server.errors import Unavailable
from magistral_mlx.server.service import GenerationService

router = APIRouter(tags=["operation"], responses=OPENAI_RESPONSES)


class HealthStatus(BaseModel):
    """A healthy server."""

    status: Literal["ok"] = "ok"
    details: Annotated[
        list[str],
        Field(description="What does not work although the server does, a sentence each."),
    ] = []


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Whether the process is alive")
async def health(request: Request) -> HealthStatus:
    """`details` tells that --cache-dir cannot be written to, if so.

    503 once a machine that computes the model with this one is gone.
    """
    service: GenerationService = request.app.state.service
    _check_ranks(service)
    problem, disk = service.pool.disk_problem, DiskCacheConfig.of(service.settings.load)
    if problem is None or disk is None:
        return HealthStatus()
    # Everybody may ask, and no path is for everybody.
    return HealthStatus(details=[problem.replace(str(disk.folder), "--cache-dir")])


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Whether the model can answer")
async def ready(request: Request) -> HealthStatus:
    """503 while the model is being loaded and while the server shuts down.

    An idle model that was unloaded counts as ready: the next request loads it.
    """
    service: GenerationService = request.app.state.service
    if service.load_error is not None:
        raise Unavailable(f"the server could not start: {service.load_error}")
    if not service.ready:
        raise Unavailable("the model is being loaded, or the server is shutting down.")
    _check_ranks(service)
    return HealthStatus()


def _check_ranks(service: GenerationService) -> None:
    lost = service.pool.lost
    if lost is not None:
        raise Unavailable(str(lost))


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Requests, tokens, speeds, queue and memory, in Prometheus' text format."""
    service: GenerationService = request.app.state.service
    text = generate_latest(service.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
