"""Lists of a conversation's items, a page at a time, as GET requests return them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query
from pydantic import BaseModel

from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.openai.response_items import InputMessage, Item
from magistral_mlx.server.shared_fields import new_id

Order = Annotated[Literal["asc", "desc"], Query(description="asc: the oldest first.")]
PageSize = Annotated[int, Query(ge=1, le=100, description="Items at most.")]
After = Annotated[str | None, Query(description="Id of the item before the page.")]

_PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "custom_tool_call": "ctc_",
    "local_shell_call": "lsh_",
}


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


def with_id(item: Item) -> Item:
    """The item, with an id of its own if it has none."""
    if item.id is not None:
        return item
    return item.model_copy(update={"id": new_id(_PREFIXES.get(item.type or "", "item_"))})


def page_of(items: Sequence[Item], *, after: str | None, limit: int, order: str) -> ItemList:
    """The page of `items` that a request asks for.

    Raises:
        BadRequest: `after` is none of them.
    """
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        ids = [item.id for item in ordered]
        if after not in ids:
            raise BadRequest(f"after is {after[:100]!r}, which is no item here.", param="after")
        ordered = ordered[ids.index(after) + 1 :]
    data = [item_dict(item) for item in ordered[:limit]]
    return ItemList(
        data=data,
        first_id=data[0]["id"] if data else None,
        last_id=data[-1]["id"] if data else None,
        has_more=len(ordered) > limit,
    )


def item_dict(item: Item) -> dict[str, Any]:
    """The item as clients read it, and can send it back."""
    found: dict[str, Any] = item.model_dump(exclude_none=True)
    found["type"] = item.type or "item_reference"
    if found["type"] == "reasoning":
        return {"summary": []} | found
    if isinstance(item, InputMessage):
        if isinstance(item.content, str):
            said = item.role == "assistant"
            text = {"type": "output_text" if said else "input_text", "text": item.content}
            found["content"] = [text | ({"annotations": []} if said else {})]
        return found | {"status": "completed"}
    return found
