"""Responses that a later one may follow: the newest ones, in memory, within a bound."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from magistral_mlx.server.openai.response_object import ResponseObject
from magistral_mlx.server.openai.response_schemas import Item
from magistral_mlx.server.refusals import NotFound
from magistral_mlx.server.settings import MIB


@dataclass(frozen=True)
class Remembered:
    """A conversation up to a response. `bytes` is what its JSON takes."""

    items: tuple[Item, ...]
    bytes: int
    response: ResponseObject | None = None  # none before the first


class ResponseStore:
    """The least recently used ones are forgotten first; the newest one never is."""

    def __init__(self, most: int = 256, most_bytes: int = 64 * MIB) -> None:
        """`most_bytes` counts what responses share once for each, so less is held than that."""
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._held: OrderedDict[str, Remembered] = OrderedDict()

    def get(self, id: str, param: str = "previous_response_id") -> Remembered:
        """The conversation up to the response of that id, which `param` of the request names.

        Raises:
            NotFound: it was never stored, or has been forgotten.
        """
        held = self._held.get(id)
        if held is None:
            raise NotFound(
                f"there is no response {id[:100]!r}: it was not stored, or has been forgotten. "
                "Send the conversation as input instead.",
                param=param,
            )
        self._held.move_to_end(id)
        return held

    def put(self, id: str, remembered: Remembered) -> None:
        self._held[id] = remembered
        self._bytes += remembered.bytes
        while len(self._held) > 1 and (
            len(self._held) > self._most or self._bytes > self._most_bytes
        ):
            _, forgotten = self._held.popitem(last=False)
            self._bytes -= forgotten.bytes

    def remove(self, id: str) -> None:
        """Forget one, if it is there. Those that followed it have what was said."""
        held = self._held.pop(id, None)
        if held is not None:
            self._bytes -= held.bytes

    def __len__(self) -> int:
        return len(self._held)
