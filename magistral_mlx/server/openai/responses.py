"""POST /v1/responses"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, TypeAdapter
from sse_starlette import ServerSentEvent

from magistral_mlx.api.options import Options
from magistral_mlx.events import Event
from magistral_mlx.server.documented import stream_response
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.failures import failure_of
from magistral_mlx.server.figures import new_id
from magistral_mlx.server.json_body import JSONRoute
from magistral_mlx.server.openai.chat import ERRORS
from magistral_mlx.server.openai.response_examples import RESPONSE_EXAMPLES
from magistral_mlx.server.openai.response_object import (
    OutputFunctionCall,
    OutputItem,
    ResponseEvent,
    ResponseObject,
)
from magistral_mlx.server.openai.response_request import (
    input_items,
    response_messages,
    response_options,
)
from magistral_mlx.server.openai.response_schemas import Item, ResponseRequest
from magistral_mlx.server.openai.response_store import Remembered, ResponseStore
from magistral_mlx.server.openai.response_writer import ResponseWriter
from magistral_mlx.server.serving import Serving
from magistral_mlx.server.sse import data, stream_of

PATH = "/v1/responses"
_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])

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

    A response is remembered for a while unless `store` is false, and another may follow it by
    `previous_response_id`. The server runs no tools of its own.
    """
    serving: Serving = request.app.state.serving
    options = response_options(body)
    remembering = _Remembering(_store(request), body, len(await request.body()))
    messages = response_messages(remembering.items, body.instructions)
    exchange = serving.answer(
        request,
        body.model,
        messages,
        options,
        endpoint=PATH,
        body=await request.json(),
    )
    if body.stream:

        def write(events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEvent]:
            return _stream(events, _writer(exchange, body, options), remembering)

        return await stream_of(exchange, write, grace=serving.settings.grace)
    async with exchange as events:
        writer = _writer(exchange, body, options)
        async for event in events:
            for _ in writer.feed(event):
                pass
    remembering.keep(writer.response)
    return JSONResponse(writer.response.model_dump(exclude_unset=True))


_Id = Annotated[str, Path(description="As the response has it.")]


class ResponseDeleted(BaseModel):
    """It is remembered no more."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


@router.get(PATH + "/{id}", summary="A response that is remembered", response_model=ResponseObject)
async def response(request: Request, id: _Id) -> Response:
    found = _store(request).get(id, "id").response
    assert found is not None
    return JSONResponse(found.model_dump(exclude_unset=True))


@router.delete(PATH + "/{id}", summary="Forget a response")
async def forget(request: Request, id: _Id) -> ResponseDeleted:
    """Those that followed it stay, with what was said before them."""
    store = _store(request)
    store.get(id, "id")
    store.remove(id)
    return ResponseDeleted(id=id)


async def _stream(
    events: AsyncIterator[Event], writer: ResponseWriter, remembering: _Remembering
) -> AsyncIterator[ServerSentEvent]:
    for sent in writer.begin():
        yield data(sent, sent.type)
    try:
        async for event in events:
            for sent in writer.feed(event):
                if sent.type in ("response.completed", "response.incomplete"):
                    remembering.keep(writer.response)  # before the client can follow it
                yield data(sent, sent.type)
    except Exception as error:
        for sent in writer.fail(failure_of(error)):
            yield data(sent, sent.type)


class _Remembering:
    """The conversation of one request: what is remembered of it before, and will be after."""

    def __init__(self, store: ResponseStore, body: ResponseRequest, size: int) -> None:
        """`size`: bytes of the request.

        Raises:
            NotFound: the response before is not there.
        """
        before = Remembered((), 0)
        if body.previous_response_id is not None:
            before = store.get(body.previous_response_id)
        self.items: Sequence[Item] = (*before.items, *input_items(body))
        self._store = store if body.store is not False else None
        self._bytes = before.bytes + size

    def keep(self, response: ResponseObject) -> None:
        """Remember it with its response, if that is wanted."""
        if self._store is None:
            return
        said = [item.model_dump() for item in response.output if not _is_broken(item)]
        size = self._bytes + sum(len(str(item)) for item in said)
        items = (*self.items, *_ITEMS.validate_python(said))
        self._store.put(response.id, Remembered(items, size, response))


def _is_broken(item: OutputItem) -> bool:
    """Whether it is a call that was cut short, which no function can have answered."""
    return isinstance(item, OutputFunctionCall) and item.status != "completed"


def _store(request: Request) -> ResponseStore:
    """The one of this application."""
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = ResponseStore()
    store: ResponseStore = state.responses
    return store


def _writer(exchange: Exchange, body: ResponseRequest, options: Options) -> ResponseWriter:
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
        tools=[_told(tool) for tool in asked.get("tools", ())],
        tool_choice=asked.get("tool_choice", "auto"),
        parallel_tool_calls=options.parallel_tool_calls,
        truncation="auto" if options.overflow == "drop" else "disabled",
        background=False,
        metadata=body.metadata or {},
        seed=options.seed or 0,
    )
    return ResponseWriter(
        response,
        summary=bool(body.reasoning and body.reasoning.summary),
        logprobs=options.reported_logprobs is not None,
    )


def _told(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with all that clients expect of one."""
    return {"type": "function", "description": None, "parameters": None, "strict": None} | tool
