"""The server as an ASGI application, put together from its parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from magistral_mlx import __version__
from magistral_mlx.api.magistral import Magistral
from magistral_mlx.runtime.progress import OnProgress
from magistral_mlx.server.anthropic import messages
from magistral_mlx.server.anthropic.answer_schemas import MessageEvent
from magistral_mlx.server.documented import describe
from magistral_mlx.server.failures import install_handlers
from magistral_mlx.server.guard import HostGuard, KeyGuard
from magistral_mlx.server.health import router as health
from magistral_mlx.server.intake import BodyLimit, LastResort
from magistral_mlx.server.metrics import CountRequests
from magistral_mlx.server.metrics import router as metrics
from magistral_mlx.server.openai import chat, completions, models, responses
from magistral_mlx.server.openai.chat_answer_schemas import ChatChunk
from magistral_mlx.server.openai.response_object import ResponseEvent
from magistral_mlx.server.page import mount_page
from magistral_mlx.server.serving import Serving
from magistral_mlx.server.settings import Settings
from magistral_mlx.server.shelf import Load

_PROTOCOLS = (chat, completions, responses, models, messages)
_STREAMED = (ChatChunk, ResponseEvent, MessageEvent)  # what the protocols' streams send


def create_app(
    settings: Settings, load: Load = Magistral.load, on_progress: OnProgress | None = None
) -> FastAPI:
    """The application. Its models are found now; the first is loaded when it starts.

    Args:
        load: what loads a model, as `Magistral.load` does.
        on_progress: called while files are downloaded, and in another thread while weights are
            read.

    Raises:
        MagistralError: a model that is not there, damaged, or does not fit.
    """
    serving = Serving(settings, load, on_progress)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        serving.spawn(serving.load())
        yield
        await serving.close()

    app = FastAPI(
        title="magistral-mlx",
        version=__version__,
        description="Magistral Small 1.2 on this machine, over the APIs that clients know.",
        lifespan=life,
        docs_url=None,  # its pages would load their scripts from elsewhere
        redoc_url=None,
    )
    app.state.serving = serving
    install_handlers(app)
    app.include_router(health)
    app.include_router(metrics)
    for protocol in _PROTOCOLS:
        app.include_router(protocol.router)
    mount_page(app)
    describe(
        app,
        model=serving.catalog.first.id,
        events=_STREAMED,
        keyed=settings.api_key is not None,
    )
    _guard(app, serving)
    return app


def _guard(app: FastAPI, serving: Serving) -> None:
    """Put the gates around the application, the innermost first."""
    settings = serving.settings
    app.add_middleware(LastResort)
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
            allow_private_network=True,  # a page of the web that was named may come here
        )
    app.add_middleware(HostGuard, settings=settings)
    app.add_middleware(CountRequests, metrics=serving.metrics)
