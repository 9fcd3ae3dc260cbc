"""Chat dicts out of APIs that spell a turn in several items or blocks."""

from __future__ import annotations

from typing import Any

Part = dict[str, Any]


class Turns:
    """Puts the pieces of a conversation together, in the order in which they come.

    What a tool returned may hold images, for which the model's template has no place there: they
    are shown by the user once all results have been told.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._thinking: str | None = None  # of an assistant's turn that is still to come
        self._images: list[Part] = []  # that tools have returned

    def system(self, content: str | list[Part]) -> None:
        self._close()
        self._messages.append({"role": "system", "content": content})

    def user(self, content: str | list[Part]) -> None:
        shown, self._images = self._images, []
        self._close()
        if shown:
            content = [text_part(content)] if isinstance(content, str) else content
            content = [*shown, *content]
        self._messages.append({"role": "user", "content": content})

    def thinking(self, text: str) -> None:
        """What the model thought before its next piece."""
        self._show()
        self._thinking = (self._thinking or "") + text

    def text(self, text: str) -> None:
        """What the model answered."""
        self._assistant()["content"] += text

    def call(self, name: str, arguments: str | dict[str, Any], id: str | None) -> None:
        """A tool that the model called."""
        call = {"id": id, "function": {"name": name, "arguments": arguments}}
        self._assistant().setdefault("tool_calls", []).append(call)

    def result(self, content: list[Part], id: str | None) -> None:
        """What a tool returned."""
        self._close(show=False)
        texts = [part for part in content if part["type"] == "text"]
        images = [part for part in content if part["type"] != "text"]
        if images and not texts:
            texts = [text_part("(see the image)")]
        self._images += images
        self._messages.append({"role": "tool", "tool_call_id": id, "content": texts})

    def messages(self) -> list[dict[str, Any]]:
        """All of it, as `to_messages` reads it."""
        self._close()
        return self._messages

    def _assistant(self) -> dict[str, Any]:
        """The turn of the model that is being put together."""
        self._show()
        last = self._messages[-1] if self._messages else None
        if last is None or last["role"] != "assistant" or self._thinking is not None:
            last = {"role": "assistant", "content": ""}
            if self._thinking is not None:
                last["reasoning_content"], self._thinking = self._thinking, None
            self._messages.append(last)
        return last

    def _close(self, *, show: bool = True) -> None:
        """Somebody else's turn comes."""
        if self._thinking is not None:
            self._assistant()
        elif show:
            self._show()

    def _show(self) -> None:
        if self._images:
            images, self._images = self._images, []
            self._messages.append({"role": "user", "content": images})


def left_open(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`messages`, where a last one of the model's is to be continued, as clients expect it."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or last.get("tool_calls") or "prefix" in last:
        return messages
    return [*messages[:-1], last | {"prefix": True}]


def text_part(text: str) -> Part:
    return {"type": "text", "text": text}


def image_part(url: str) -> Part:
    return {"type": "image_url", "image_url": {"url": url}}
