"""The server as an ASGI application, put together from its parts."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.staticfiles import StaticFiles

from magistral_mlx import __version__
from magistral_mlx.api import Magistral
from magistral_mlx.api.progress import OnProgress
from magistral_mlx.server.failures import install_handlers
from magistral_mlx.server.health import router as health
from magistral_mlx.server.serving import Serving
from magistral_mlx.server.settings import Settings
from magistral_mlx.server.shelf import Load

STATIC = Path(__file__).parent / "static"
_PROTOCOLS = (
    "openai.chat",
    "openai.completions",
    "openai.responses",
    "openai.models",
    "anthropic.messages",
)


def create_app(
    settings: Settings, load: Load = Magistral.load, on_progress: OnProgress | None = None
) -> FastAPI:
    """The application. Its models are found now; the first is loaded when it starts.

    Args:
        load: what loads a model, as `Magistral.load` does.
        on_progress: called while weights are read, in another thread.

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
        redoc_url=None,
    )
    app.state.serving = serving
    install_handlers(app)
    app.include_router(health)
    for router in _protocols():
        app.include_router(router)
    if STATIC.is_dir():
        app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")
    return app


def _protocols() -> list[APIRouter]:
    routers = []
    for name in _PROTOCOLS:
        full = f"magistral_mlx.server.{name}"
        try:
            found = importlib.util.find_spec(full) is not None
        except ModuleNotFoundError:
            found = False
        if found:
            routers.append(importlib.import_module(full).router)
    return routers
