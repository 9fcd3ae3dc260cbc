"""/v1/responses: the endpoints."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent

from magistral_mlx.api.options import Options
from magistral_mlx.events import Event
from magistral_mlx.server.blocks import read_blocks
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.openai.chat import ERRORS
from magistral_mlx.server.openai.conversations import store_of
from magistral_mlx.server.openai.item_lists import (
    After,
    ItemList,
    Order,
    PageSize,
    page_of,
)
from magistral_mlx.server.openai.request_conversation import RequestConversation
from magistral_mlx.server.openai.response_format import ResponseFormatter
from magistral_mlx.server.openai.response_object import (
    ConversationId,
    ResponseEvent,
    ResponseObject,
)
from magistral_mlx.server.openai.response_replay import replay
from magistral_mlx.server.openai.response_request import (
    ENCRYPTED,
    response_options,
)
from magistral_mlx.server.openai.response_schemas import ResponseRequest
from magistral_mlx.server.openai.response_tools import ResponseTools
from magistral_mlx.server.openapi import stream_response
from magistral_mlx.server.openapi_examples import RESPONSE_EXAMPLES
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.shared_fields import new_id
from magistral_mlx.server.sse import data, stream_of

PATH = "/v1/responses"

router = APIRouter(tags=["OpenAI"], responses=ERRORS, route_class=JSONRoute)


@router.post(
    PATH,
    summary="Respond",
    response_model=ResponseObject,
    responses={200: stream_response(ResponseEvent, "The response; with `stream`, its events")},
)
async def responses(
    request: Request, body: Annotated[ResponseRequest, Body(openapi_examples=RESPONSE_EXAMPLES)]
) -> Response:
    """OpenAI's responses: text, thinking and calls to functions as items, streamed or not.

    A response is stored for a while unless `store` is false, and another may follow it by
    `previous_response_id`. The server runs no tools of its own.
    """
    service: GenerationService = request.app.state.service
    options = response_options(body)
    conversation = RequestConversation(store_of(request), body, len(await request.body()))
    messages = await asyncio.to_thread(conversation.messages, body.instructions)
    exchange = service.answer(
        request,
        body.model,
        messages,
        options,
        endpoint=PATH,
        body=await request.json(),
    )
    formatter = _formatter(exchange, body, options)
    if body.stream:
        return await stream_of(
            exchange,
            lambda events: _stream(events, exchange, formatter, conversation),
            fail=formatter.fail,
            grace=service.settings.grace,
        )
    async with exchange as events:
        formatter.response.model = exchange.model
        async for event in read_blocks(events):
            deque(formatter.write(event), maxlen=0)
    conversation.store(formatter.response)
    return JSONResponse(formatter.response.model_dump(exclude_unset=True))


_Id = Annotated[str, Path(description="The id of the response.")]


class ResponseDeleted(BaseModel):
    """A response that was deleted."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class InputTokens(BaseModel):
    """Tokens of a request's prompt."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


@router.post(PATH + "/input_tokens", summary="Count the tokens of a request")
async def count_input_tokens(
    request: Request, body: Annotated[ResponseRequest, Body(openapi_examples=RESPONSE_EXAMPLES)]
) -> InputTokens:
    """Tokens of the prompt, images and tools included. The model need not be loaded for it."""
    service: GenerationService = request.app.state.service
    options = response_options(body)
    conversation = RequestConversation(store_of(request), body, len(await request.body()))
    messages = await asyncio.to_thread(conversation.messages, body.instructions)
    tokens = await service.count(request, body.model, messages, options)
    return InputTokens(input_tokens=tokens)


@router.get(
    PATH + "/{id}",
    summary="A stored response",
    response_model=ResponseObject,
    responses={200: stream_response(ResponseEvent, "The response; with `stream`, its events")},
)
async def response(
    request: Request,
    id: _Id,
    stream: Annotated[bool, Query(description="Send the events of its stream again.")] = False,
    starting_after: Annotated[
        int, Query(description="Number of the event after which a stream begins.")
    ] = -1,
) -> Response:
    """A stream that is sent again has each text, and the arguments of each call, in one event."""
    found = store_of(request).get(id, "id").response
    assert found is not None
    if not stream:
        return JSONResponse(found.model_dump(exclude_unset=True))
    events = [data(each) for each in replay(found) if each.sequence_number > starting_after]
    return EventSourceResponse(_each(events), sep="\n")


@router.get(PATH + "/{id}/input_items", summary="What a stored response answers")
async def list_input_items(
    request: Request,
    id: _Id,
    limit: PageSize = 20,
    order: Order = "desc",
    after: After = None,
) -> ItemList:
    """The items of its input, with those of the conversation before it."""
    stored = store_of(request).get(id, "id")
    before = stored.items[: len(stored.items) - stored.outputs]
    return page_of(before, after=after, limit=limit, order=order)


@router.delete(PATH + "/{id}", summary="Delete a response")
async def delete(request: Request, id: _Id) -> ResponseDeleted:
    """Later responses of its conversation stay, with all their items."""
    store = store_of(request)
    store.get(id, "id")
    store.remove(id)
    return ResponseDeleted(id=id)


async def _each(events: list[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
    for event in events:
        yield event


async def _stream(
    events: AsyncIterator[Event],
    exchange: Exchange,
    formatter: ResponseFormatter,
    conversation: RequestConversation,
) -> AsyncIterator[ResponseEvent]:
    formatter.response.model = exchange.model  # known now
    async for event in formatter.stream(events):
        if event.type in ("response.completed", "response.incomplete"):
            conversation.store(formatter.response)  # before the client can follow it
        yield event


def _formatter(exchange: Exchange, body: ResponseRequest, options: Options) -> ResponseFormatter:
    asked = body.model_dump(exclude_none=True, by_alias=True)
    reasoning: dict[str, Any] = {"effort": None, "summary": None} | asked.get("reasoning", {})
    response = ResponseObject(
        id=new_id("resp_"),
        object="response",
        created_at=exchange.created,
        status="in_progress",
        model=exchange.model,
        output=[],
        error=None,
        incomplete_details=None,
        usage=None,
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        store=body.store is not False,
        max_output_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_logprobs=options.top_logprobs,
        reasoning=reasoning,
        text={"format": {"type": "text"}} | asked.get("text", {}),
        tools=[_complete_tool(tool) for tool in asked.get("tools", ())],
        tool_choice=asked.get("tool_choice", "auto"),
        parallel_tool_calls=options.parallel_tool_calls,
        truncation="auto" if options.overflow == "drop" else "disabled",
        background=False,
        metadata=body.metadata or {},
        seed=options.seed or 0,
    )
    if body.conversation_id is not None:
        response.conversation = ConversationId(id=body.conversation_id)
    return ResponseFormatter(
        response,
        ResponseTools(body.tools),
        summary=bool(body.reasoning and body.reasoning.summary),
        logprobs=options.reported_logprobs is not None,
        encrypted=ENCRYPTED in (body.include or ()),
    )


def _complete_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A function with all fields that clients expect; other tools as they are."""
    if tool.get("type", "function") != "function":
        return tool
    return {"type": "function", "description": None, "parameters": None, "strict": None} | tool
