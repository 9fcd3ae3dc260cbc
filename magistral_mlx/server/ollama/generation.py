"""POST /api/chat and POST /api/generate."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.server.blocks import read_samples
from magistral_mlx.server.json_lines import lines_of
from magistral_mlx.server.ollama.examples import CHAT_EXAMPLES, GENERATE_EXAMPLES
from magistral_mlx.server.ollama.format import OllamaFormatter
from magistral_mlx.server.ollama.response_schemas import (
    OllamaChatAnswer,
    OllamaError,
    OllamaGeneration,
)
from magistral_mlx.server.ollama.schemas import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaRequest,
)
from magistral_mlx.server.ollama.translation import (
    chat_messages,
    generate_prompt,
    generation_options,
)
from magistral_mlx.server.openapi import error_responses, lines_response
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.request_translation import own_names
from magistral_mlx.server.service import GenerationService

_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OllamaError, "description": "The request is invalid, or refused for now"},
    "5XX": {"model": OllamaError, "description": "The server failed, or is not ready"},
}
ERRORS = error_responses(OllamaError, 400, 401, 403, 404, 413, 429, 500, 503, rest=_RESPONSES)

router = APIRouter(tags=["Ollama"], responses=ERRORS, route_class=JSONRoute)


@router.post(
    "/api/chat",
    summary="Answer a conversation",
    response_model=OllamaChatAnswer,
    responses={200: lines_response(OllamaChatAnswer, "The answer; a line for each piece of it")},
)
async def chat(
    request: Request, body: Annotated[OllamaChatRequest, Body(openapi_examples=CHAT_EXAMPLES)]
) -> Response:
    """Ollama's chat, with images, thinking, tools and structured output."""
    prompt = chat_messages(body) if body.messages else None
    return await _answer(request, body, prompt, chat=True)


@router.post(
    "/api/generate",
    summary="Answer a prompt",
    response_model=OllamaGeneration,
    responses={200: lines_response(OllamaGeneration, "The answer; a line for each piece of it")},
)
async def generate(
    request: Request,
    body: Annotated[OllamaGenerateRequest, Body(openapi_examples=GENERATE_EXAMPLES)],
) -> Response:
    """Ollama's completion of one prompt."""
    prompt = generate_prompt(body) if body.prompt or body.images else None
    return await _answer(request, body, prompt, chat=False)


async def _answer(
    request: Request, body: OllamaRequest, prompt: PromptLike | None, *, chat: bool
) -> Response:
    service: GenerationService = request.app.state.service
    keep_alive = (
        math.inf if body.keep_alive is not None and body.keep_alive < 0 else body.keep_alive
    )
    options = generation_options(body)
    tools = body.tools if isinstance(body, OllamaChatRequest) else None
    names = own_names(tool.function for tool in tools or ())
    formatter = OllamaFormatter(
        body.model,
        chat,
        thinking=body.think is not False,
        logprobs=options.reported_logprobs is not None,
        names=names,
    )
    if prompt is None:
        await service.load(request, body.model, keep_alive)
        loaded = formatter.loaded(stays=keep_alive != 0)
        return JSONResponse(loaded.model_dump(mode="json", exclude_unset=True))
    exchange = service.answer(
        request,
        body.model,
        prompt,
        options,
        endpoint=request.url.path,
        body=await request.json(),
        keep_alive=keep_alive,
    )
    if body.stream is not False:
        return await lines_of(
            exchange,
            formatter.stream,
            fail=lambda error: OllamaError(error=error.message),
            ping=formatter.empty,
        )
    async with exchange as events:
        samples = await read_samples(events, names)
    return JSONResponse(formatter.whole(samples[0]).model_dump(mode="json", exclude_unset=True))
