"""The ASGI application: endpoints, the page, error handlers and middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from magistral_mlx import __version__
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.runtime.progress import OnProgress
from magistral_mlx.server import documents, lm_studio, mcp_tools, other_servers
from magistral_mlx.server.anthropic import messages
from magistral_mlx.server.anthropic.response_schemas import MessageEvent
from magistral_mlx.server.bodies import BodyDrain, BodyLimit, BodyUnpacker
from magistral_mlx.server.error_responses import install_handlers
from magistral_mlx.server.middleware import (
    HostGuard,
    KeyGuard,
    RequestCounter,
    UnhandledErrors,
)
from magistral_mlx.server.model_pool import Load
from magistral_mlx.server.ollama import generation
from magistral_mlx.server.ollama import models as ollama_models
from magistral_mlx.server.openai import (
    chat,
    compaction,
    completions,
    conversations,
    mistral,
    models,
    responses,
)
from magistral_mlx.server.openai.chat_response_schemas import ChatChunk
from magistral_mlx.server.openai.response_object import ResponseEvent
from magistral_mlx.server.openapi import describe
from magistral_mlx.server.operation import router as operation
from magistral_mlx.server.page import mount_page
from magistral_mlx.server.paths import PathForgiver
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.settings import Settings

_PROTOCOLS = (
    *(chat, completions, compaction, responses, conversations, mistral, models),
    *(messages, documents),
    *(generation, ollama_models, other_servers, lm_studio),
)
_STREAMED = (ChatChunk, ResponseEvent, MessageEvent)  # events of the protocols' streams


def create_app(
    settings: Settings, load: Load = Magistral.load, on_progress: OnProgress | None = None
) -> FastAPI:
    """Create the application. Its models are found now; the first is loaded when it starts.

    Args:
        load: loads a model, as `Magistral.load` does.
        on_progress: called while files are downloaded, and in another thread while weights are
            read.

    Raises:
        MagistralError: a model that is missing, damaged, or does not fit.
    """
    service = GenerationService(settings, load, on_progress)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.close()

    app = FastAPI(
        title="magistral-mlx",
        version=__version__,
        description="Magistral Small 1.2 on this machine, over the APIs that clients know.",
        lifespan=life,
        docs_url=None,  # its pages would load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a slash at the end is forgiven, see `paths`
    )
    app.state.service = service
    app.state.mcp = service.mcp
    install_handlers(app)
    app.include_router(operation)
    for protocol in _PROTOCOLS:
        app.include_router(protocol.router)
    if settings.mcp:
        app.include_router(mcp_tools.router)
    if settings.load_adapters:
        from magistral_mlx.server import adapters

        app.include_router(adapters.router)
    mount_page(app)
    describe(
        app,
        model=service.registry.first.id,
        events=_STREAMED,
        keyed=settings.api_key is not None,
    )
    _add_middleware(app, service)
    return app


def _add_middleware(app: FastAPI, service: GenerationService) -> None:
    """Add the middleware, the innermost first."""
    settings = service.settings
    app.add_middleware(UnhandledErrors)
    app.add_middleware(BodyUnpacker, limit=settings.limits.body_bytes)
    app.add_middleware(BodyLimit, limit=settings.limits.body_bytes)
    if settings.api_key is not None:
        app.add_middleware(KeyGuard, key=settings.api_key)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
            allow_private_network=True,  # an allowed page of the web may use this machine
        )
    app.add_middleware(HostGuard, settings=settings)
    app.add_middleware(RequestCounter, counter=service.metrics.requests)
    app.add_middleware(BodyDrain)
    app.add_middleware(PathForgiver)
