"""Events as the events of a response. A whole response is what stands at their end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Prefill,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
    ToolCallPart,
)
from magistral_mlx.server.answers import note_of
from magistral_mlx.server.failures import Failure
from magistral_mlx.server.figures import progress_of, timings_of
from magistral_mlx.server.openai.response_items import (
    Fields,
    Writing,
    WritingCall,
    WritingText,
    WritingThoughts,
)
from magistral_mlx.server.openai.response_object import (
    IncompleteDetails,
    ResponseEvent,
    ResponseFailure,
    ResponseInputDetails,
    ResponseObject,
    ResponseOutputDetails,
    ResponseUsage,
    Status,
)


class ResponseWriter:
    """The state of a response. `response` is whole once `Finished` has come."""

    def __init__(self, response: ResponseObject, *, summary: bool, logprobs: bool) -> None:
        """`response` as it begins. `summary`: put the thinking there."""
        self.response = response
        self._summary = summary
        self._wants_logprobs = logprobs
        self._writing: Writing | None = None
        self._logprobs: list[TokenLogprob] = []
        self._notes: list[str] = []
        self._number = 0

    def begin(self) -> Iterator[ResponseEvent]:
        """What comes before anything else."""
        yield self._event("response.created", response=self._snapshot())
        yield self._event("response.in_progress", response=self._snapshot())

    def feed(self, event: Event) -> Iterator[ResponseEvent]:
        """What is sent for the next event."""
        note = note_of(event)
        if note:
            self._notes.append(note)
        match event:
            case TokenLogprob():
                if self._wants_logprobs and not event.thinking:
                    self._logprobs.append(event)
            case Prefill(done, total) if done < total:
                beat = {"response": self._snapshot(), "progress": progress_of(event)}
                yield self._event("response.in_progress", **beat)
            case Thinking(text):
                yield from self._thoughts(text)
            case Text(text):
                yield from self._text(text)
            case ToolCallPart(_, name, arguments, id):
                yield from self._call_part(name, arguments, id)
            case ToolCall(name, arguments, id):
                if not isinstance(self._writing, WritingCall):
                    yield from self._call_part(name, arguments, id)
                yield from self._close("completed")
            case MalformedCall(text):
                if isinstance(self._writing, WritingCall):
                    yield from self._close("incomplete")
                else:
                    yield from self._text(text)
            case Finished():
                yield from self._finish(event)

    def fail(self, failure: Failure) -> Iterator[ResponseEvent]:
        """What is sent when the answer fails on its way."""
        response, code = self.response, failure.code or "server_error"
        response.status = "failed"
        response.error = ResponseFailure(code="server_error", message=failure.message)
        yield self._event("error", code=code, message=failure.message, param=failure.param)
        yield self._event("response.failed", response=self._snapshot())

    def _thoughts(self, text: str) -> Iterator[ResponseEvent]:
        if not isinstance(self._writing, WritingThoughts):
            yield from self._open(WritingThoughts(summary=self._summary))
        assert isinstance(self._writing, WritingThoughts)
        yield from self._of_item(self._writing.add(text))

    def _text(self, text: str) -> Iterator[ResponseEvent]:
        if not isinstance(self._writing, WritingText):
            yield from self._open(WritingText())
        assert isinstance(self._writing, WritingText)
        logprobs, self._logprobs = self._logprobs, []
        yield from self._of_item(self._writing.add(text, logprobs))

    def _call_part(self, name: str, arguments: str, id: str | None) -> Iterator[ResponseEvent]:
        if not isinstance(self._writing, WritingCall):
            yield from self._open(WritingCall(name, id))
        assert isinstance(self._writing, WritingCall)
        self._logprobs = []  # those of a call have no place
        yield from self._of_item(self._writing.add(arguments))

    def _finish(self, end: Finished) -> Iterator[ResponseEvent]:
        response = self.response
        whole = end.reason == "stop"
        yield from self._close("completed" if whole else "incomplete")
        response.usage = _usage(end.stats)
        response.timings = timings_of(end.stats)
        response.completed_at = int(time.time())
        if self._notes:
            response.notes = self._notes
        response.status = "completed" if whole else "incomplete"
        if not whole:
            response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        name = "response.completed" if whole else "response.incomplete"
        yield self._event(name, response=self._snapshot())

    # Items

    def _open(self, writing: Writing) -> Iterator[ResponseEvent]:
        yield from self._close("completed")
        self._writing = writing
        yield self._item_event("response.output_item.added")
        yield from self._of_item(writing.begin())

    def _close(self, status: Status) -> Iterator[ResponseEvent]:
        """The item that is being written is done."""
        if self._writing is None:
            return
        yield from self._of_item(self._writing.end(status))
        yield self._item_event("response.output_item.done")
        self.response.output = [*self.response.output, self._writing.item]
        self._writing = None

    def _of_item(self, all_fields: list[Fields]) -> Iterator[ResponseEvent]:
        assert self._writing is not None
        for name, fields in all_fields:
            place = {"item_id": self._writing.item.id, "output_index": len(self.response.output)}
            yield self._event(name, **place, **fields)

    def _item_event(self, name: str) -> ResponseEvent:
        assert self._writing is not None
        item = self._writing.item.model_copy()
        return self._event(name, output_index=len(self.response.output), item=item)

    def _snapshot(self) -> ResponseObject:
        return self.response.model_copy()

    def _event(self, kind: str, /, **fields: Any) -> ResponseEvent:
        number, self._number = self._number, self._number + 1
        return ResponseEvent(type=kind, sequence_number=number, **fields)  # type: ignore[arg-type]


def _usage(stats: Stats) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=stats.prompt_tokens,
        input_tokens_details=ResponseInputDetails(
            cached_tokens=stats.cached_tokens, cache_write_tokens=0
        ),
        output_tokens=stats.completion_tokens,
        output_tokens_details=ResponseOutputDetails(reasoning_tokens=stats.thinking_tokens),
        total_tokens=stats.prompt_tokens + stats.completion_tokens,
    )
