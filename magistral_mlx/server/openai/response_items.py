"""The items of a response as they are written, each with its events in the official order."""

from __future__ import annotations

from typing import Any, Protocol

from magistral_mlx.events import TokenLogprob
from magistral_mlx.server.figures import new_id
from magistral_mlx.server.openai.figures import logprobs_of
from magistral_mlx.server.openai.response_object import (
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningTextOut,
    Status,
    SummaryOut,
)

Fields = tuple[str, dict[str, Any]]  # an event's type and fields, but for what all of an item have


class Writing(Protocol):
    """An item that is being written."""

    @property
    def item(self) -> OutputItem: ...

    def begin(self) -> list[Fields]: ...

    def end(self, status: Status) -> list[Fields]: ...


class WritingText:
    """A message with one part of text."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._part = OutputText(type="output_text", text="", annotations=[], logprobs=[])
        self.item = OutputMessage(
            type="message",
            id=new_id("msg_"),
            role="assistant",
            status="in_progress",
            content=[],
        )

    def begin(self) -> list[Fields]:
        part = self._part.model_copy()
        return [("response.content_part.added", {"content_index": 0, "part": part})]

    def add(self, text: str, logprobs: list[TokenLogprob]) -> list[Fields]:
        found = logprobs_of(logprobs).content
        self._pieces.append(text)
        self._part.logprobs.extend(found)
        fields = {"content_index": 0, "delta": text, "logprobs": found}
        return [("response.output_text.delta", fields)]

    def end(self, status: Status) -> list[Fields]:
        part = self._part
        part.text = "".join(self._pieces)
        self.item.content = [part]
        self.item.status = status
        done = {"content_index": 0, "text": part.text, "logprobs": part.logprobs}
        return [
            ("response.output_text.done", done),
            ("response.content_part.done", {"content_index": 0, "part": part}),
        ]


class WritingThoughts:
    """A reasoning item with one part: its content, or its summary."""

    def __init__(self, *, summary: bool) -> None:
        self._summary = summary
        self._pieces: list[str] = []
        self.item = OutputReasoning(
            type="reasoning", id=new_id("rs_"), status="in_progress", summary=[], content=[]
        )

    def begin(self) -> list[Fields]:
        return [(self._event("added"), {self._index: 0, "part": self._part("")})]

    def add(self, text: str) -> list[Fields]:
        self._pieces.append(text)
        return [(self._text_event("delta"), {self._index: 0, "delta": text})]

    def end(self, status: Status) -> list[Fields]:
        part = self._part("".join(self._pieces))
        if isinstance(part, SummaryOut):
            self.item.summary = [part]
        else:
            self.item.content = [part]
        self.item.status = status
        return [
            (self._text_event("done"), {self._index: 0, "text": part.text}),
            (self._event("done"), {self._index: 0, "part": part}),
        ]

    def _part(self, text: str) -> SummaryOut | ReasoningTextOut:
        if self._summary:
            return SummaryOut(type="summary_text", text=text)
        return ReasoningTextOut(type="reasoning_text", text=text)

    @property
    def _index(self) -> str:
        return "summary_index" if self._summary else "content_index"

    def _event(self, what: str) -> str:
        kind = "reasoning_summary_part" if self._summary else "content_part"
        return f"response.{kind}.{what}"

    def _text_event(self, what: str) -> str:
        kind = "reasoning_summary_text" if self._summary else "reasoning_text"
        return f"response.{kind}.{what}"


class WritingCall:
    """A call to a function."""

    def __init__(self, name: str, call_id: str | None) -> None:
        self._pieces: list[str] = []
        self.item = OutputFunctionCall(
            type="function_call",
            id=new_id("fc_"),
            call_id=call_id or new_id("call_"),
            name=name,
            arguments="",
            status="in_progress",
        )

    def begin(self) -> list[Fields]:
        return []

    def add(self, arguments: str) -> list[Fields]:
        if not arguments:
            return []
        self._pieces.append(arguments)
        return [("response.function_call_arguments.delta", {"delta": arguments})]

    def end(self, status: Status) -> list[Fields]:
        self.item.arguments = "".join(self._pieces)
        self.item.status = status
        fields = {"name": self.item.name, "arguments": self.item.arguments}
        return [("response.function_call_arguments.done", fields)]
