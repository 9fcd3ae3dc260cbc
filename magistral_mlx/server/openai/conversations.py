"""/v1/conversations: conversations that clients keep on the server, in memory."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Request
from pydantic import BaseModel, Field

from magistral_mlx.server.errors import NotFound
from magistral_mlx.server.openai.chat import ERRORS
from magistral_mlx.server.openai.item_lists import (
    After,
    ItemList,
    Order,
    PageSize,
    item_dict,
    page_of,
    with_id,
)
from magistral_mlx.server.openai.response_items import Item
from magistral_mlx.server.openai.response_store import (
    ResponseStore,
    StoredConversation,
    size_of,
)
from magistral_mlx.server.openapi_examples import CONVERSATION_EXAMPLES, ITEM_EXAMPLES
from magistral_mlx.server.request_body import JSONRoute, Many, RequestBody, Some, Table
from magistral_mlx.server.shared_fields import new_id

PATH = "/v1/conversations"

router = APIRouter(tags=["OpenAI"], responses=ERRORS, route_class=JSONRoute)

_Id = Annotated[str, Path(description="The id of the conversation.")]
_ItemId = Annotated[str, Path(description="The id of the item.")]


class ConversationChange(RequestBody):
    """New metadata."""

    metadata: Table[str] | None = None


class NewConversation(ConversationChange):
    """A conversation's first items."""

    items: Many[Item] | None = None


class NewItems(RequestBody):
    """Items for the end of a conversation."""

    items: Some[Item]


class ConversationObject(BaseModel):
    """A conversation, without its items."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: Annotated[int, Field(description="Seconds since 1970.")]
    metadata: dict[str, str]


class ConversationDeleted(BaseModel):
    """A conversation that was deleted."""

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True


@router.post(PATH, summary="Create a conversation")
async def create(
    request: Request,
    body: Annotated[NewConversation, Body(openapi_examples=CONVERSATION_EXAMPLES)],
) -> ConversationObject:
    """Responses continue it by their field `conversation`. The newest 256 are held, in memory."""
    items = tuple(map(with_id, body.items or ()))
    stored = StoredConversation(
        new_id("conv_"), int(time.time()), items, size_of(items), body.metadata or {}
    )
    store_of(request).conversations.put(stored.id, stored)
    return _shown(stored)


@router.get(PATH + "/{id}", summary="A conversation")
async def retrieve(request: Request, id: _Id) -> ConversationObject:
    return _shown(store_of(request).conversation(id))


@router.post(PATH + "/{id}", summary="Change a conversation's metadata")
async def update(
    request: Request,
    id: _Id,
    body: Annotated[ConversationChange, Body(openapi_examples=CONVERSATION_EXAMPLES)],
) -> ConversationObject:
    stored = replace(store_of(request).conversation(id), metadata=body.metadata or {})
    store_of(request).conversations.put(id, stored)
    return _shown(stored)


@router.delete(PATH + "/{id}", summary="Delete a conversation")
async def delete(request: Request, id: _Id) -> ConversationDeleted:
    """Stored responses of the conversation stay."""
    store = store_of(request)
    store.conversation(id)
    store.conversations.remove(id)
    return ConversationDeleted(id=id)


@router.post(PATH + "/{id}/items", summary="Add items to a conversation")
async def add_items(
    request: Request, id: _Id, body: Annotated[NewItems, Body(openapi_examples=ITEM_EXAMPLES)]
) -> ItemList:
    added = tuple(map(with_id, body.items))
    extend(store_of(request), id, added)
    return page_of(added, after=None, limit=len(added), order="asc")


@router.get(PATH + "/{id}/items", summary="Items of a conversation")
async def list_items(
    request: Request,
    id: _Id,
    limit: PageSize = 20,
    order: Order = "desc",
    after: After = None,
) -> ItemList:
    stored = store_of(request).conversation(id)
    return page_of(stored.items, after=after, limit=limit, order=order)


@router.get(PATH + "/{id}/items/{item_id}", summary="An item of a conversation")
async def retrieve_item(request: Request, id: _Id, item_id: _ItemId) -> dict[str, Any]:
    return item_dict(_item(store_of(request).conversation(id), item_id))


@router.delete(PATH + "/{id}/items/{item_id}", summary="Delete an item of a conversation")
async def delete_item(request: Request, id: _Id, item_id: _ItemId) -> ConversationObject:
    stored = store_of(request).conversation(id)
    item = _item(stored, item_id)
    items = tuple(each for each in stored.items if each is not item)
    stored = replace(stored, items=items, bytes=stored.bytes - size_of([item]))
    store_of(request).conversations.put(id, stored)
    return _shown(stored)


def store_of(request: Request) -> ResponseStore:
    """The store of this application."""
    state = request.app.state
    if not hasattr(state, "responses"):
        state.responses = ResponseStore()
    store: ResponseStore = state.responses
    return store


def extend(store: ResponseStore, id: str, items: tuple[Item, ...]) -> None:
    """Add items to the end of a conversation.

    Raises:
        NotFound: it is not stored.
    """
    held = store.conversation(id)
    changed = replace(held, items=(*held.items, *items), bytes=held.bytes + size_of(items))
    store.conversations.put(id, changed)


def _item(stored: StoredConversation, id: str) -> Item:
    for item in stored.items:
        if item.id == id:
            return item
    raise NotFound(f"the conversation has no item {id[:100]!r}.", param="item_id")


def _shown(stored: StoredConversation) -> ConversationObject:
    return ConversationObject(
        id=stored.id, created_at=stored.created_at, metadata=dict(stored.metadata)
    )
