"""Stored responses and conversations, for responses that follow them or refer to their items."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from magistral_mlx.server.errors import NotFound
from magistral_mlx.server.openai.response_items import Item
from magistral_mlx.server.openai.response_object import OutputItem, ResponseObject
from magistral_mlx.server.settings import MIB

_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


@dataclass(frozen=True)
class StoredResponse:
    """A conversation up to a response. `bytes` is the size of its JSON.

    outputs: how many of the items, the last ones, are the response's own.
    """

    items: tuple[Item, ...]
    bytes: int
    response: ResponseObject | None = None  # None before the first
    outputs: int = 0


@dataclass(frozen=True)
class StoredConversation:
    """A conversation that a client keeps here. `bytes` is the size of its JSON."""

    id: str
    created_at: int
    items: tuple[Item, ...] = ()
    bytes: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


class _Sized(Protocol):
    @property
    def bytes(self) -> int: ...


_T = TypeVar("_T", bound=_Sized)


class BoundedStore(Generic[_T]):
    """The newest values in memory, within bounds; the least recently used go first."""

    def __init__(self, most: int = 256, most_bytes: int = 64 * MIB) -> None:
        """`most_bytes` counts shared items once for each value, so less is held than that."""
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._held: OrderedDict[str, _T] = OrderedDict()

    def find(self, id: str) -> _T | None:
        """Return the value of that id, now the most recently used; None if it is not stored."""
        if id in self._held:
            self._held.move_to_end(id)
        return self._held.get(id)

    def put(self, id: str, value: _T) -> None:
        """Store a value in place of an older one, dropping others beyond the bounds."""
        self.remove(id)
        self._held[id] = value
        self._bytes += value.bytes
        while len(self._held) > 1 and (
            len(self._held) > self._most or self._bytes > self._most_bytes
        ):
            _, dropped = self._held.popitem(last=False)
            self._bytes -= dropped.bytes

    def remove(self, id: str) -> None:
        """Drop a value, if it is stored."""
        held = self._held.pop(id, None)
        if held is not None:
            self._bytes -= held.bytes

    def __iter__(self) -> Iterator[_T]:
        """The newest first."""
        return reversed(self._held.values())

    def __len__(self) -> int:
        return len(self._held)


class ResponseStore(BoundedStore[StoredResponse]):
    """The newest responses, and the conversations that clients keep here."""

    def __init__(self, most: int = 256, most_bytes: int = 64 * MIB) -> None:
        super().__init__(most, most_bytes)
        self.conversations: BoundedStore[StoredConversation] = BoundedStore(most, most_bytes)

    def get(self, id: str, param: str = "previous_response_id") -> StoredResponse:
        """Return the conversation up to the response of that id, given in the field `param`.

        Raises:
            NotFound: it was never stored, or has been dropped.
        """
        held = self.find(id)
        if held is None:
            raise NotFound(
                f"there is no response {id[:100]!r}: it was not stored, or has been dropped. "
                "Send the conversation as input instead.",
                param=param,
            )
        return held

    def conversation(self, id: str, param: str = "id") -> StoredConversation:
        """Return the conversation of that id, given in the field `param`.

        Raises:
            NotFound: it was never created, or has been dropped.
        """
        held = self.conversations.find(id)
        if held is None:
            raise NotFound(
                f"there is no conversation {id[:100]!r}: it was not created here, or has been "
                "dropped. Create one, or send the conversation as input.",
                param=param,
            )
        return held

    def item(self, id: str) -> Item:
        """Return the item of that id.

        Raises:
            NotFound: no stored response or conversation has it.
        """
        for stored in (*self, *self.conversations):
            for item in reversed(stored.items):
                if item.id == id:
                    return item
        raise NotFound(
            f"there is no item {id[:100]!r}: its response was not stored, or has been dropped. "
            "Send the item itself.",
            param="input",
        )


def as_input(items: Sequence[OutputItem]) -> list[Item]:
    """Items of a response's output as items of input."""
    return _ITEMS.validate_python([item.model_dump() for item in items])


def size_of(items: Sequence[Item]) -> int:
    """Bytes of the items, about."""
    return sum(len(str(item)) for item in items)
