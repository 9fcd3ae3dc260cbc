"""The conversation that a request for a response is about: what is stored, and its own input."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from magistral_mlx.server.errors import BadRequest, NotFound
from magistral_mlx.server.openai.conversations import extend
from magistral_mlx.server.openai.item_lists import with_id
from magistral_mlx.server.openai.response_items import Item, ItemReference
from magistral_mlx.server.openai.response_object import OutputCall, OutputItem, ResponseObject
from magistral_mlx.server.openai.response_request import input_items, response_messages
from magistral_mlx.server.openai.response_schemas import ResponseRequest
from magistral_mlx.server.openai.response_store import (
    ResponseStore,
    StoredConversation,
    StoredResponse,
    as_input,
    size_of,
)


class RequestConversation:
    """The conversation of one request: its stored items and the new ones."""

    def __init__(self, store: ResponseStore, body: ResponseRequest, size: int) -> None:
        """`size`: bytes of the request.

        Raises:
            BadRequest: there is nothing to respond to.
            NotFound: the previous response, the conversation, or an item that is referred to, is
                not stored.
        """
        self._added = tuple(
            store.item(item.id) if isinstance(item, ItemReference) else with_id(item)
            for item in input_items(body)
        )
        self._id = body.conversation_id
        before: StoredResponse | StoredConversation = StoredResponse((), 0)
        if body.previous_response_id is not None:
            before = store.get(body.previous_response_id)
        elif self._id is not None:
            before = store.conversation(self._id, "conversation")
        self.items: tuple[Item, ...] = (*before.items, *self._added)
        self._stored = len(before.items)
        if not self.items:
            raise BadRequest(
                "the conversation is empty: give input, a previous_response_id, or a conversation "
                "that holds items.",
                param="input",
            )
        self._store = store
        self._keeps = body.store is not False
        self._bytes = before.bytes + size

    def messages(self, instructions: str | None, *more: Item) -> list[dict[str, Any]]:
        """The conversation, and `more` items at its end, as dicts for `to_messages`."""
        return response_messages([*self.items, *more], instructions, self._stored)

    def store(self, response: ResponseObject) -> None:
        """Store it with its response, unless the request says not to."""
        said = as_input([item for item in response.output if not _is_cut(item)])
        if self._id is not None:
            with suppress(NotFound):  # deleted since
                extend(self._store, self._id, (*self._added, *said))
        if self._keeps:
            items, size = (*self.items, *said), self._bytes + size_of(said)
            self._store.put(response.id, StoredResponse(items, size, response, len(said)))


def _is_cut(item: OutputItem) -> bool:
    """Whether it is a call that was cut short, which no function can have answered."""
    return isinstance(item, OutputCall) and item.status != "completed"
