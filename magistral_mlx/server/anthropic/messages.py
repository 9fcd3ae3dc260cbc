"""POST /v1/messages and /v1/messages/count_tokens"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import ServerSentEvent

from magistral_mlx.server.answers import whole_answers
from magistral_mlx.server.anthropic.answer import message_of
from magistral_mlx.server.anthropic.answer_schemas import AnthropicMessage, MessageEvent, TokenCount
from magistral_mlx.server.anthropic.examples import COUNT_EXAMPLES, MESSAGE_EXAMPLES
from magistral_mlx.server.anthropic.request import conversation, options_of
from magistral_mlx.server.anthropic.schemas import CountRequest, MessageRequest
from magistral_mlx.server.anthropic.stream import MessageStream
from magistral_mlx.server.documented import error_responses, stream_response
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.failures import ANTHROPIC_RESPONSES, AnthropicError
from magistral_mlx.server.json_body import JSONRoute
from magistral_mlx.server.serving import Serving
from magistral_mlx.server.sse import data, stream_of

PATH = "/v1/messages"

router = APIRouter(
    tags=["Anthropic"],
    responses=error_responses(
        AnthropicError, 400, 401, 403, 404, 413, 429, 500, 503, rest=ANTHROPIC_RESPONSES
    ),
    route_class=JSONRoute,
)


@router.post(
    PATH,
    summary="Answer a conversation, as Anthropic's API does",
    response_model=AnthropicMessage,
    responses={200: stream_response(MessageEvent, "The message; with `stream`, its events")},
)
async def messages(
    request: Request, body: Annotated[MessageRequest, Body(openapi_examples=MESSAGE_EXAMPLES)]
) -> Response:
    """Anthropic's messages, with images, thinking blocks and tools.

    As there, the model thinks only where `thinking` says so. While a long prompt is being read a
    stream sends pings.
    """
    serving: Serving = request.app.state.serving
    options = options_of(body)
    exchange = serving.answer(
        request,
        body.model,
        conversation(body),
        options,
        endpoint=PATH,
        body=await request.json(),
    )
    if body.stream:
        return await stream_of(
            exchange,
            lambda events: MessageStream(exchange, _context(serving, exchange)).write(events),
            grace=serving.settings.grace,
            ping=_ping,
        )
    async with exchange as events:
        [answer] = await whole_answers(events)
    message = message_of(exchange, answer, _context(serving, exchange))
    return JSONResponse(message.model_dump(exclude_unset=True))


@router.post(PATH + "/count_tokens", summary="Count the tokens of a conversation")
async def count_tokens(
    request: Request, body: Annotated[CountRequest, Body(openapi_examples=COUNT_EXAMPLES)]
) -> TokenCount:
    """Tokens of the prompt, images and tools included. The model need not be loaded for it."""
    serving: Serving = request.app.state.serving
    tokens = await serving.count(request, body.model, conversation(body), options_of(body))
    return TokenCount(input_tokens=tokens)


def _context(serving: Serving, exchange: Exchange) -> int:
    """Tokens that prompt and answer have together; known for sure once the exchange is entered."""
    return serving.catalog.find(exchange.model).info.context


def _ping() -> ServerSentEvent:
    return data(MessageEvent(type="ping"), "ping")
