"""LM Studio's own API under /api/v0: its list of models, and OpenAI's endpoints with `stats`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from magistral_mlx.server.model_info import ModelInfo
from magistral_mlx.server.ollama.generation import ERRORS
from magistral_mlx.server.openai.chat import chat_completions
from magistral_mlx.server.openai.chat_response_schemas import ChatChunk, ChatCompletion
from magistral_mlx.server.openai.chat_schemas import ChatRequest
from magistral_mlx.server.openai.completion_schemas import Completion, CompletionRequest
from magistral_mlx.server.openai.completions import completions
from magistral_mlx.server.openapi import stream_response
from magistral_mlx.server.openapi_examples import CHAT_EXAMPLES, COMPLETION_EXAMPLES
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.service import GenerationService

# Errors are Ollama's, as all under /api: LM Studio has the same.
router = APIRouter(tags=["Other servers"], responses=ERRORS, route_class=JSONRoute)

_ARCH: Literal["mistral3"] = "mistral3"
_STOP_REASONS = {
    "stop": "eosFound",
    "length": "maxPredictedTokensReached",
    "tool_calls": "toolCalls",
}


class LMStudioModel(BaseModel):
    """A model, as LM Studio's own API lists it."""

    id: str
    object: Literal["model"] = "model"
    type: Literal["llm", "vlm"]
    publisher: Annotated[str, Field(description="The owner in its id; empty for none.")]
    arch: Literal["mistral3"] = _ARCH
    compatibility_type: Literal["mlx", "gguf"]
    quantization: str
    state: Literal["loaded", "not-loaded"]
    max_context_length: int
    loaded_context_length: Annotated[int | None, Field(description="null unless loaded.")]
    capabilities: list[Literal["tool_use"]]


class LMStudioModels(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[LMStudioModel]


class LMStudioStats(BaseModel):
    """Speed of an answer, in seconds, and why it ended."""

    tokens_per_second: float
    time_to_first_token: float
    generation_time: float
    stop_reason: str


class LMStudioModelInfo(BaseModel):
    """The model that answered."""

    arch: Literal["mistral3"] = _ARCH
    quant: str
    format: Literal["mlx", "gguf"]
    context_length: int


class LMStudioChatCompletion(ChatCompletion):
    """A chat completion with LM Studio's fields."""

    stats: LMStudioStats
    model_info: LMStudioModelInfo


class LMStudioCompletion(Completion):
    """A completion with LM Studio's fields."""

    stats: LMStudioStats
    model_info: LMStudioModelInfo


@router.head("/api/v0/models", include_in_schema=False)
@router.get("/api/v0/models", summary="The models that requests may name")
async def lm_studio_models(request: Request) -> LMStudioModels:
    service: GenerationService = request.app.state.service
    return LMStudioModels(data=[_model(info) for info in service.models()])


@router.head("/api/v0/models/{id:path}", include_in_schema=False)
@router.get("/api/v0/models/{id:path}", summary="One model")
async def lm_studio_model(
    request: Request, id: Annotated[str, Path(description="As /api/v0/models lists it.")]
) -> LMStudioModel:
    service: GenerationService = request.app.state.service
    return _model(service.registry.info(id))


@router.post(
    "/api/v0/chat/completions",
    summary="Answer a conversation, with statistics",
    response_model=LMStudioChatCompletion,
    responses={200: stream_response(ChatChunk, "As /v1/chat/completions streams", done=True)},
)
async def lm_studio_chat(
    request: Request, body: Annotated[ChatRequest, Body(openapi_examples=CHAT_EXAMPLES)]
) -> Response:
    """As /v1/chat/completions, with `stats` and `model_info` unless it streams."""
    return _with_stats(request, body.model, await chat_completions(request, body))


@router.post(
    "/api/v0/completions",
    summary="Continue a text, with statistics",
    response_model=LMStudioCompletion,
    responses={200: stream_response(Completion, "As /v1/completions streams", done=True)},
)
async def lm_studio_completions(
    request: Request, body: Annotated[CompletionRequest, Body(openapi_examples=COMPLETION_EXAMPLES)]
) -> Response:
    """As /v1/completions, with `stats` and `model_info` unless it streams."""
    return _with_stats(request, body.model, await completions(request, body))


def _with_stats(request: Request, model: str | None, response: Response) -> Response:
    """Add LM Studio's fields to a whole answer; a stream stays as it is."""
    if not isinstance(response, JSONResponse):
        return response
    answer: dict[str, Any] = json.loads(bytes(response.body))
    timings, last = answer["timings"], answer["choices"][-1]
    service: GenerationService = request.app.state.service
    info = service.registry.info(model)
    answer["stats"] = LMStudioStats(
        tokens_per_second=timings["predicted_per_second"],
        time_to_first_token=timings["prompt_ms"] / 1000,
        generation_time=timings["predicted_ms"] / 1000,
        stop_reason=_STOP_REASONS[last["finish_reason"]],
    ).model_dump()
    answer["model_info"] = LMStudioModelInfo(
        quant=info.files.quantization,
        format=_format(info),
        context_length=info.context,
    ).model_dump()
    return JSONResponse(answer)


def _model(info: ModelInfo) -> LMStudioModel:
    return LMStudioModel(
        id=info.id,
        type="vlm" if info.supports_images else "llm",
        publisher=info.id.rpartition("/")[0],
        compatibility_type=_format(info),
        quantization=info.files.quantization,
        state="loaded" if info.loaded else "not-loaded",
        max_context_length=info.context,
        loaded_context_length=info.context if info.loaded else None,
        capabilities=["tool_use"],
    )


def _format(info: ModelInfo) -> Literal["mlx", "gguf"]:
    return "gguf" if info.files.is_gguf else "mlx"
