"""GET /v1/models and /v1/models/{id}: as OpenAI's, Anthropic's and Mistral's clients read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from magistral_mlx.server.error_responses import OPENAI_RESPONSES, OpenAIError
from magistral_mlx.server.model_info import ModelInfo
from magistral_mlx.server.openai.mistral import is_mistral_client
from magistral_mlx.server.openapi import error_responses
from magistral_mlx.server.preprocessing import MAX_IMAGE_PIXELS, MAX_PROMPT_PIXELS
from magistral_mlx.server.service import GenerationService

router = APIRouter(
    tags=["OpenAI"],
    responses=error_responses(OpenAIError, 401, 403, rest=OPENAI_RESPONSES),
)
_404 = error_responses(OpenAIError, 404, rest={})


class ModelCapabilities(BaseModel):
    """Capabilities, as Mistral's API names them."""

    completion_chat: Literal[True] = True
    function_calling: Literal[True] = True
    completion_fim: Literal[False] = False
    fine_tuning: Literal[False] = False
    vision: bool
    reasoning: bool


class ModelMeta(BaseModel):
    """Sizes of a model: its context, weights, and bytes on disk."""

    n_ctx: int
    n_params: int
    size: int


class ModelCard(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Field(description="When its files were written, seconds since 1970.")]
    owned_by: Literal["magistral-mlx"] = "magistral-mlx"
    type: Annotated[
        Literal["model", "base"],
        Field(description="model, as Anthropic's API has it; base for Mistral's clients."),
    ]
    name: Annotated[str, Field(description="The id once more, for Mistral's API.")]
    display_name: Annotated[str, Field(description="The id once more, for Anthropic's API.")]
    created_at: Annotated[datetime, Field(description="`created` once more, for Anthropic's API.")]
    context_length: Annotated[int, Field(description="Tokens of prompt and answer together.")]
    max_context_length: Annotated[
        int, Field(description="`context_length` once more, for Mistral's API.")
    ]
    max_model_len: Annotated[int, Field(description="`context_length` once more, as vLLM has it.")]
    meta: Annotated[ModelMeta, Field(description="Sizes, as llama-server has them.")]
    capabilities: ModelCapabilities
    vision: Annotated[bool, Field(description="Whether it supports images.")]
    thinking: Annotated[bool, Field(description="Whether it thinks before it answers.")]
    loaded: Annotated[bool, Field(description="Whether it is in memory now.")]
    parent: Annotated[
        str | None, Field(description="The model that its adapter changes; null for a model.")
    ]
    system_prompt: Annotated[
        str | None, Field(description="Its own, which asks it to think; null for none.")
    ]


class RequestLimits(BaseModel):
    """Limits of one request."""

    body_bytes: Annotated[int, Field(description="Bytes of its body.")]
    images: Annotated[int, Field(description="Images in all its messages.")]
    image_pixels: Annotated[int, Field(description="Pixels of one image.")]
    prompt_pixels: Annotated[int, Field(description="Pixels of all its images.")]


class ModelList(BaseModel):
    """All models. The first one is the default."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
    first_id: str
    last_id: str
    has_more: Literal[False] = False
    limits: RequestLimits
    mcp: Annotated[bool, Field(description="Whether the page has tools of MCP servers.")]


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", summary="The models that requests may name")
async def models(request: Request) -> ModelList:
    service: GenerationService = request.app.state.service
    found = [_model(info, request) for info in service.models()]
    limits = RequestLimits(
        body_bytes=service.settings.limits.body_bytes,
        images=service.settings.limits.images,
        image_pixels=MAX_IMAGE_PIXELS,
        prompt_pixels=MAX_PROMPT_PIXELS,
    )
    return ModelList(
        data=found,
        first_id=found[0].id,
        last_id=found[-1].id,
        limits=limits,
        mcp=bool(service.settings.mcp),
    )


@router.head("/v1/models/{id:path}", include_in_schema=False)
@router.get("/v1/models/{id:path}", summary="One model", responses=_404)
async def model(
    request: Request, id: Annotated[str, Path(description="As /v1/models lists it.")]
) -> ModelCard:
    service: GenerationService = request.app.state.service
    return _model(service.registry.info(id), request)


def _model(info: ModelInfo, request: Request) -> ModelCard:
    return ModelCard(
        id=info.id,
        created=info.created,
        type="base" if is_mistral_client(request.headers) else "model",
        name=info.id,
        display_name=info.id,
        created_at=datetime.fromtimestamp(info.created, UTC),
        context_length=info.context,
        max_context_length=info.context,
        max_model_len=info.context,
        meta=ModelMeta(
            n_ctx=info.context, n_params=info.files.parameters, size=info.files.size_bytes
        ),
        capabilities=ModelCapabilities(vision=info.supports_images, reasoning=info.thinks),
        vision=info.supports_images,
        thinking=info.thinks,
        loaded=info.loaded,
        parent=info.parent,
        system_prompt=info.system_prompt,
    )
