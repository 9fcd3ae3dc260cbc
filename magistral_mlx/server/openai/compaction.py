"""POST /v1/responses/compact: a long conversation as its user's messages and a summary."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel

from magistral_mlx.api.options import Options
from magistral_mlx.server.blocks import read_samples
from magistral_mlx.server.openai.chat import ERRORS
from magistral_mlx.server.openai.conversations import store_of
from magistral_mlx.server.openai.item_lists import item_dict
from magistral_mlx.server.openai.request_conversation import RequestConversation
from magistral_mlx.server.openai.response_format import response_usage
from magistral_mlx.server.openai.response_items import InputMessage
from magistral_mlx.server.openai.response_object import ResponseUsage
from magistral_mlx.server.openai.response_request import check_unsupported, encode_text
from magistral_mlx.server.openai.response_schemas import ResponseRequest
from magistral_mlx.server.openapi_examples import COMPACT_EXAMPLES
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.shared_fields import new_id

PATH = "/v1/responses/compact"

router = APIRouter(tags=["OpenAI"], responses=ERRORS, route_class=JSONRoute)

_ASK = (
    "Summarise our conversation so far, so that it can be continued from the summary alone: the "
    "task, decisions, what was done and found, names of files and functions, and what is left to "
    "do. Write the summary only."
)
_LONGEST = 2048  # tokens of a summary


class CompactedResponse(BaseModel):
    """The conversation in short: send `output` as the beginning of the next input."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[dict[str, Any]]
    usage: ResponseUsage


@router.post(PATH, summary="Compact a conversation")
async def compact(
    request: Request, body: Annotated[ResponseRequest, Body(openapi_examples=COMPACT_EXAMPLES)]
) -> CompactedResponse:
    """The model summarises it; the summary comes back as a `compaction` item.

    The user's messages stay as they are.
    """
    service: GenerationService = request.app.state.service
    check_unsupported(body)
    conversation = RequestConversation(store_of(request), body, len(await request.body()))
    asked = InputMessage(role="user", content=_ASK)
    exchange = service.answer(
        request,
        body.model,
        await asyncio.to_thread(conversation.messages, body.instructions, asked),
        Options(thinking="off", max_tokens=_LONGEST),
        endpoint=PATH,
        body=await request.json(),
    )
    async with exchange as events:
        [sample] = await read_samples(events)
    said = [
        item_dict(item)
        for item in conversation.items
        if isinstance(item, InputMessage) and item.role == "user"
    ]
    summary = {
        "type": "compaction",
        "id": new_id("cmp_"),
        "encrypted_content": encode_text(sample.text.strip()),
    }
    return CompactedResponse(
        id=new_id("resp_"),
        created_at=exchange.created,
        output=[*said, summary],
        usage=response_usage(sample.stats),
    )
