"""Stored responses, so that later ones can follow them and refer to their items."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from magistral_mlx.server.errors import NotFound
from magistral_mlx.server.openai.response_items import Item
from magistral_mlx.server.openai.response_object import OutputItem, ResponseObject
from magistral_mlx.server.settings import MIB

_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


@dataclass(frozen=True)
class StoredResponse:
    """A conversation up to a response. `bytes` is the size of its JSON."""

    items: tuple[Item, ...]
    bytes: int
    response: ResponseObject | None = None  # None before the first


class ResponseStore:
    """The newest responses in memory, within bounds; the least recently used go first."""

    def __init__(self, most: int = 256, most_bytes: int = 64 * MIB) -> None:
        """`most_bytes` counts shared items once for each response, so less is held than that."""
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._held: OrderedDict[str, StoredResponse] = OrderedDict()

    def get(self, id: str, param: str = "previous_response_id") -> StoredResponse:
        """Return the conversation up to the response of that id, given in the field `param`.

        Raises:
            NotFound: it was never stored, or has been dropped.
        """
        held = self._held.get(id)
        if held is None:
            raise NotFound(
                f"there is no response {id[:100]!r}: it was not stored, or has been dropped. "
                "Send the conversation as input instead.",
                param=param,
            )
        self._held.move_to_end(id)
        return held

    def put(self, id: str, stored: StoredResponse) -> None:
        """Store a response, dropping others beyond the bounds."""
        self._held[id] = stored
        self._bytes += stored.bytes
        while len(self._held) > 1 and (
            len(self._held) > self._most or self._bytes > self._most_bytes
        ):
            _, dropped = self._held.popitem(last=False)
            self._bytes -= dropped.bytes

    def remove(self, id: str) -> None:
        """Drop a response, if it is stored. Later ones keep the whole conversation."""
        held = self._held.pop(id, None)
        if held is not None:
            self._bytes -= held.bytes

    def item(self, id: str) -> Item:
        """Return the output item of that id, as an item of input.

        Raises:
            NotFound: no stored response has it.
        """
        for stored in reversed(self._held.values()):
            for item in () if stored.response is None else stored.response.output:
                if item.id == id:
                    return as_input([item])[0]
        raise NotFound(
            f"there is no item {id[:100]!r}: its response was not stored, or has been dropped. "
            "Send the item itself.",
            param="input",
        )

    def __len__(self) -> int:
        return len(self._held)


def as_input(items: Sequence[OutputItem]) -> list[Item]:
    """Items of a response's output as items of input."""
    return _ITEMS.validate_python([item.model_dump() for item in items])
