"""POST /v1/chat/completions"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from magistral_mlx.server.answers import whole_answers
from magistral_mlx.server.documented import error_responses, stream_response
from magistral_mlx.server.failures import OPENAI_RESPONSES, OpenAIError
from magistral_mlx.server.json_body import JSONRoute
from magistral_mlx.server.openai.chat_answer import chat_completion
from magistral_mlx.server.openai.chat_answer_schemas import ChatChunk, ChatCompletion
from magistral_mlx.server.openai.chat_examples import CHAT_EXAMPLES
from magistral_mlx.server.openai.chat_request import chat_messages, chat_options
from magistral_mlx.server.openai.chat_schemas import ChatRequest
from magistral_mlx.server.openai.chat_stream import ChatStream
from magistral_mlx.server.serving import Serving
from magistral_mlx.server.sse import stream_of

PATH = "/v1/chat/completions"
ERRORS = error_responses(OpenAIError, 400, 401, 403, 404, 413, 429, 500, 503, rest=OPENAI_RESPONSES)

router = APIRouter(tags=["OpenAI"], responses=ERRORS, route_class=JSONRoute)


@router.post(
    PATH,
    summary="Answer a conversation",
    response_model=ChatCompletion,
    responses={
        200: stream_response(
            ChatChunk, "The answers; with `stream`, chunks and then [DONE]", done=True
        )
    },
)
async def chat_completions(
    request: Request, body: Annotated[ChatRequest, Body(openapi_examples=CHAT_EXAMPLES)]
) -> Response:
    """OpenAI's chat completions, with images, thinking, tools and structured output.

    The thinking comes apart from the content, in `reasoning_content`. While a long prompt is being
    read a stream sends chunks with an empty delta and `progress`, and a comment every ten seconds.
    """
    serving: Serving = request.app.state.serving
    options = chat_options(body)
    exchange = serving.answer(
        request,
        body.model,
        chat_messages(body),
        options,
        endpoint=PATH,
        body=await request.json(),
    )
    assert options.seed is not None
    style: dict[str, Any] = {
        "seed": options.seed,
        "logprobs": options.reported_logprobs is not None,
        "mistral": body.reasoning_format == "mistral",
    }
    if body.stream:
        usage = bool(body.stream_options and body.stream_options.include_usage)
        grace = serving.settings.grace
        return await stream_of(
            exchange,
            lambda events: ChatStream(exchange, **style, usage=usage).write(events),
            grace=grace,
        )
    async with exchange as events:
        answers = await whole_answers(events)
    completion = chat_completion(exchange, answers, **style)
    return JSONResponse(completion.model_dump(exclude_unset=True))
