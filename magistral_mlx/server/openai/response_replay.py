"""The events of a stored response, as its stream would send them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from magistral_mlx.server.openai.response_object import (
    OutputCustomCall,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputPart,
    OutputReasoning,
    OutputText,
    ReasoningTextPart,
    ResponseEvent,
    ResponseObject,
)

_NAMES: dict[type[OutputPart], tuple[str, str, str]] = {
    OutputText: ("content_part", "output_text", "content_index"),
    ReasoningTextPart: ("content_part", "reasoning_text", "content_index"),
}
_SUMMARY = ("reasoning_summary_part", "reasoning_summary_text", "summary_index")


def replay(response: ResponseObject) -> Iterator[ResponseEvent]:
    """All events in the official order; each text or call comes in one delta."""
    for number, (kind, fields) in enumerate(_events(response)):
        yield ResponseEvent(type=kind, sequence_number=number, **fields)  # type: ignore[arg-type]


_Event = tuple[str, dict[str, Any]]


def _events(response: ResponseObject) -> Iterator[_Event]:
    begun = response.model_copy(
        update={"status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    )
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    for index, item in enumerate(response.output):
        place = {"output_index": index}
        yield "response.output_item.added", place | {"item": _emptied(item)}
        for kind, fields in _item_events(item):
            yield kind, place | {"item_id": item.id} | fields
        yield "response.output_item.done", place | {"item": item}
    yield f"response.{response.status}", {"response": response}


def _emptied(item: OutputItem) -> OutputItem:
    emptied = {"content": [], "summary": [], "arguments": "", "input": ""}
    fields = {name: value for name, value in emptied.items() if name in type(item).model_fields}
    return item.model_copy(update=fields | {"status": "in_progress"})


def _item_events(item: OutputItem) -> Iterator[_Event]:
    match item:
        case OutputMessage(content=texts):
            for n, part in enumerate(texts):
                yield from _part_events(n, part, {"logprobs": part.logprobs})
        case OutputReasoning(summary=summaries, content=contents):
            parts: list[OutputPart] = [*summaries, *contents]  # one of the two
            for n, each in enumerate(parts):
                yield from _part_events(n, each, {})
        case OutputFunctionCall(name=name, arguments=arguments):
            yield "response.function_call_arguments.delta", {"delta": arguments}
            done = {"name": name, "arguments": arguments}
            yield "response.function_call_arguments.done", done
        case OutputCustomCall(input=text):
            yield "response.custom_tool_call_input.delta", {"delta": text}
            yield "response.custom_tool_call_input.done", {"input": text}


def _part_events(n: int, part: OutputPart, logprobs: dict[str, Any]) -> Iterator[_Event]:
    name, text, index = _NAMES.get(type(part), _SUMMARY)
    place, blank = {index: n}, part.model_copy(update={"text": ""} | {key: [] for key in logprobs})
    yield f"response.{name}.added", place | {"part": blank}
    yield f"response.{text}.delta", place | {"delta": part.text} | logprobs
    yield f"response.{text}.done", place | {"text": part.text} | logprobs
    yield f"response.{name}.done", place | {"part": part}
