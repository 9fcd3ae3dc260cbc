"""GET /api/v0/models: the models as LM Studio's own API lists them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from magistral_mlx.server.model_info import ModelInfo
from magistral_mlx.server.ollama.generation import ERRORS
from magistral_mlx.server.service import GenerationService

router = APIRouter(tags=["Other servers"], responses=ERRORS)  # Ollama's, as all under /api


class LMStudioModel(BaseModel):
    """A model, as LM Studio's own API lists it."""

    id: str
    object: Literal["model"] = "model"
    type: Literal["llm", "vlm"]
    publisher: Annotated[str, Field(description="The owner in its id; empty for none.")]
    arch: Literal["mistral3"] = "mistral3"
    compatibility_type: Literal["mlx", "gguf"]
    quantization: str
    state: Literal["loaded", "not-loaded"]
    max_context_length: int
    loaded_context_length: Annotated[int | None, Field(description="null unless loaded.")]
    capabilities: tuple[Literal["tool_use"]] = ("tool_use",)


class LMStudioModels(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[LMStudioModel]


@router.get("/api/v0/models", summary="The models that requests may name")
async def lm_studio_models(request: Request) -> LMStudioModels:
    service: GenerationService = request.app.state.service
    return LMStudioModels(data=[_model(info) for info in service.models()])


def _model(info: ModelInfo) -> LMStudioModel:
    return LMStudioModel(
        id=info.id,
        type="vlm" if info.supports_images else "llm",
        publisher=info.id.rpartition("/")[0],
        compatibility_type="gguf" if info.files.is_gguf else "mlx",
        quantization=info.files.quantization,
        state="loaded" if info.loaded else "not-loaded",
        max_context_length=info.context,
        loaded_context_length=info.context if info.loaded else None,
    )
