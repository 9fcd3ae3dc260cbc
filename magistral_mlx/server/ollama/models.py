"""GET /api/tags, /api/ps and /api/version, POST /api/show and /api/pull, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from magistral_mlx.server.errors import NotSupported
from magistral_mlx.server.model_info import ModelInfo
from magistral_mlx.server.ollama.examples import NAME_EXAMPLES
from magistral_mlx.server.ollama.generation import ERRORS
from magistral_mlx.server.ollama.response_schemas import (
    OllamaDetails,
    OllamaModel,
    OllamaModelInfo,
    OllamaModels,
    OllamaRunningModel,
    OllamaRunningModels,
    OllamaStatus,
    OllamaVersion,
)
from magistral_mlx.server.ollama.schemas import OllamaModelName
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.service import GenerationService

VERSION = "0.13.0"  # of Ollama, whose API this is: clients ask for a version of theirs at least
_FAMILY = "mistral3"
_FOR_EVER = timedelta(days=365 * 100)

router = APIRouter(tags=["Ollama"], responses=ERRORS, route_class=JSONRoute)


@router.head("/api/version", include_in_schema=False)
@router.get("/api/version", summary="The version of Ollama's API")
async def version() -> OllamaVersion:
    return OllamaVersion(version=VERSION)


@router.head("/api/tags", include_in_schema=False)
@router.get("/api/tags", summary="The models that requests may name")
async def tags(request: Request) -> OllamaModels:
    service: GenerationService = request.app.state.service
    return OllamaModels(models=[OllamaModel(**_fields(info)) for info in service.models()])


@router.head("/api/ps", include_in_schema=False)
@router.get("/api/ps", summary="The model in memory")
async def ps(request: Request) -> OllamaRunningModels:
    service: GenerationService = request.app.state.service
    left = service.pool.seconds_left
    stays = _FOR_EVER if left is None else timedelta(seconds=left)
    return OllamaRunningModels(
        models=[
            OllamaRunningModel(
                **_fields(info),
                expires_at=datetime.now(UTC) + stays,
                size_vram=info.files.size_bytes,
                context_length=info.context,
            )
            for info in service.models()
            if info.loaded
        ]
    )


@router.post("/api/show", summary="All about a model")
async def show(
    request: Request, body: Annotated[OllamaModelName, Body(openapi_examples=NAME_EXAMPLES)]
) -> OllamaModelInfo:
    service: GenerationService = request.app.state.service
    info = service.registry.info(body.named)
    return OllamaModelInfo(
        modelfile=f"FROM {info.id}\n",
        parameters="",
        template="{{ .Prompt }}",  # of use to nobody: messages are templated here
        license="",
        details=_details(info),
        model_info={
            "general.architecture": _FAMILY,
            "general.basename": info.id,
            "general.parameter_count": info.files.parameters,
            f"{_FAMILY}.context_length": info.context,
        },
        capabilities=capabilities(info),
        modified_at=_modified(info),
    )


@router.post("/api/pull", summary="Whether a model is here")
async def pull(
    request: Request, body: Annotated[OllamaModelName, Body(openapi_examples=NAME_EXAMPLES)]
) -> OllamaStatus:
    """Nothing is downloaded: a model that is served is here, and another one is 404."""
    service: GenerationService = request.app.state.service
    service.registry.find(body.named)
    return OllamaStatus(status="success")


@router.post("/api/create", include_in_schema=False)
@router.post("/api/copy", include_in_schema=False)
@router.post("/api/push", include_in_schema=False)
@router.delete("/api/delete", include_in_schema=False)
@router.post("/api/blobs/{digest}", include_in_schema=False)
async def change_models() -> None:
    raise NotSupported(
        "models are not changed over the API: `magistral-mlx models` and `convert` do that."
    )


def capabilities(info: ModelInfo) -> list[str]:
    """Capabilities, in Ollama's words."""
    optional = {"vision": info.supports_images, "thinking": info.thinks}
    return ["completion", "tools", *(name for name, has in optional.items() if has)]


def _fields(info: ModelInfo) -> dict[str, Any]:
    name = info.id if ":" in info.id else f"{info.id}:latest"  # clients split it there
    return {
        "name": name,
        "model": name,
        "modified_at": _modified(info),
        "size": info.files.size_bytes,
        "digest": info.files.digest,
        "details": _details(info),
        "capabilities": capabilities(info),
    }


def _details(info: ModelInfo) -> OllamaDetails:
    return OllamaDetails(
        format="gguf" if info.files.is_gguf else "safetensors",
        family=_FAMILY,
        families=[_FAMILY],
        parameter_size=_billions(info.files.parameters),
        quantization_level=info.files.quantization,
    )


def _billions(count: int) -> str:
    """24.0B, or 2.8M"""
    return f"{count / 1e9:.1f}B" if count >= 1e8 else f"{count / 1e6:.1f}M"


def _modified(info: ModelInfo) -> datetime:
    return datetime.fromtimestamp(info.created, UTC)
