"""Formatter of responses: blocks as the events of a stream, in the official order.

A whole response is the state at the end of its stream.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from magistral_mlx.events import Event, Prefill, Stats
from magistral_mlx.server.blocks import (
    BlockDelta,
    BlockEnd,
    BlockEvent,
    BlockStart,
    OutputBlock,
    SampleEnd,
    SampleOutput,
    read_blocks,
)
from magistral_mlx.server.error_responses import ErrorResponse
from magistral_mlx.server.openai.response_object import (
    IncompleteDetails,
    OutputCustomCall,
    OutputFunctionCall,
    OutputItem,
    OutputLocalShellCall,
    OutputMessage,
    OutputPart,
    OutputReasoning,
    OutputText,
    ReasoningTextPart,
    ResponseError,
    ResponseEvent,
    ResponseInputDetails,
    ResponseObject,
    ResponseOutputDetails,
    ResponseUsage,
    SummaryPart,
)
from magistral_mlx.server.openai.response_request import encode_text
from magistral_mlx.server.openai.response_tools import (
    ResponseTools,
    ToolName,
    custom_input,
    shell_action,
)
from magistral_mlx.server.openai.usage import logprobs_of
from magistral_mlx.server.shared_fields import new_id, progress_of, timings_of

# Of each kind of block with a part: the event names of part and text, and the part's index field.
_NAMES = {
    "text": ("content_part", "output_text", "content_index"),
    "thinking": ("content_part", "reasoning_text", "content_index"),
    "summary": ("reasoning_summary_part", "reasoning_summary_text", "summary_index"),
}


class ResponseFormatter:
    """State of one response. `response` is whole after `SampleEnd`."""

    def __init__(
        self,
        response: ResponseObject,
        tools: ResponseTools,
        *,
        summary: bool,
        logprobs: bool,
        encrypted: bool,
    ) -> None:
        """`response` is its beginning. `summary`: thinking goes into the summary.
        `encrypted`: it is also encoded, to be sent back."""
        self.response = response
        self._summary = summary
        self._wants_logprobs = logprobs
        self._encrypted = encrypted
        self._tools = tools
        self._sequence_number = 0
        self._item: OutputItem | None = None
        self._part: OutputPart | None = None

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[ResponseEvent]:
        """All events of a stream."""
        yield self._event("response.created", response=self._snapshot())
        yield self._event("response.in_progress", response=self._snapshot())
        async for event in read_blocks(events):
            for sent in self.write(event):
                yield sent

    def write(self, event: BlockEvent) -> Iterator[ResponseEvent]:
        """The events for the next block event."""
        match event:
            case Prefill(done, total) if done < total:
                state = {"response": self._snapshot(), "progress": progress_of(event)}
                yield self._event("response.in_progress", **state)
            case BlockStart(block):
                yield from self._start(block)
            case BlockDelta(OutputBlock("tool_call"), text):
                if isinstance(self._item, OutputFunctionCall):
                    yield self._item_event("response.function_call_arguments.delta", delta=text)
            case BlockDelta(block, text, logprobs):
                fields: dict[str, Any] = {"delta": text}
                if isinstance(self._part, OutputText):
                    found = logprobs_of(logprobs).content if self._wants_logprobs else []
                    self._part.logprobs.extend(found)
                    fields["logprobs"] = found
                yield self._text_event(block, "delta", **fields)
            case BlockEnd(block):
                yield from self._end(block)
            case SampleEnd(sample):
                yield self._finish(sample)

    def fail(self, error: ErrorResponse) -> list[ResponseEvent]:
        """The events of an error."""
        response, code = self.response, error.code or "server_error"
        response.status = "failed"
        response.error = ResponseError(code="server_error", message=error.message)
        return [
            self._event("error", code=code, message=error.message, param=error.param),
            self._event("response.failed", response=self._snapshot()),
        ]

    def _start(self, block: OutputBlock) -> Iterator[ResponseEvent]:
        self._item = _new_item(block, self._tools.name_of(block.name))
        item = self._item.model_copy()
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        if block.kind != "tool_call":
            self._part = self._new_part(block)
            yield self._part_event(block, "added", part=self._part.model_copy())

    def _end(self, block: OutputBlock) -> Iterator[ResponseEvent]:
        item, part = self._item, self._part
        assert item is not None
        item.status = "completed" if block.complete else "incomplete"
        if isinstance(item, OutputFunctionCall):
            item.arguments = block.text
            fields = {"name": item.name, "arguments": item.arguments}
            yield self._item_event("response.function_call_arguments.done", **fields)
        elif isinstance(item, OutputCustomCall):
            item.input = custom_input(block.text)
            yield self._item_event("response.custom_tool_call_input.delta", delta=item.input)
            yield self._item_event("response.custom_tool_call_input.done", input=item.input)
        elif isinstance(item, OutputLocalShellCall):
            item.action = shell_action(block.text)
        else:
            assert part is not None
            part.text = block.text
            logprobs = {"logprobs": part.logprobs} if isinstance(part, OutputText) else {}
            yield self._text_event(block, "done", text=part.text, **logprobs)
            yield self._part_event(block, "done", part=part)
            setattr(item, "summary" if isinstance(part, SummaryPart) else "content", [part])
            if isinstance(item, OutputReasoning) and self._encrypted:
                item.encrypted_content = encode_text(block.text)
        copy = item.model_copy()
        yield self._event("response.output_item.done", output_index=self._index, item=copy)
        self.response.output = [*self.response.output, item]

    def _finish(self, sample: SampleOutput) -> ResponseEvent:
        response, whole = self.response, sample.finished.reason == "stop"
        response.status = "completed" if whole else "incomplete"
        response.usage = response_usage(sample.stats)
        response.timings = timings_of(sample.stats)
        response.completed_at = int(time.time())
        if sample.notes:
            response.notes = sample.notes
        if not whole:
            response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
        return self._event(f"response.{response.status}", response=self._snapshot())

    def _new_part(self, block: OutputBlock) -> OutputPart:
        if block.kind == "text":
            return OutputText(type="output_text", text="", annotations=[], logprobs=[])
        if self._summary:
            return SummaryPart(type="summary_text", text="")
        return ReasoningTextPart(type="reasoning_text", text="")

    def _names(self, block: OutputBlock) -> tuple[str, str, str]:
        is_summary = block.kind == "thinking" and self._summary
        return _NAMES["summary" if is_summary else block.kind]

    def _part_event(self, block: OutputBlock, what: str, **fields: Any) -> ResponseEvent:
        part, _, index = self._names(block)
        return self._item_event(f"response.{part}.{what}", **{index: 0}, **fields)

    def _text_event(self, block: OutputBlock, what: str, **fields: Any) -> ResponseEvent:
        _, text, index = self._names(block)
        return self._item_event(f"response.{text}.{what}", **{index: 0}, **fields)

    def _item_event(self, kind: str, **fields: Any) -> ResponseEvent:
        assert self._item is not None
        return self._event(kind, item_id=self._item.id, output_index=self._index, **fields)

    def _event(self, kind: str, /, **fields: Any) -> ResponseEvent:
        number, self._sequence_number = self._sequence_number, self._sequence_number + 1
        return ResponseEvent(type=kind, sequence_number=number, **fields)  # type: ignore[arg-type]

    @property
    def _index(self) -> int:
        return len(self.response.output)

    def _snapshot(self) -> ResponseObject:
        return self.response.model_copy()


def _new_item(block: OutputBlock, tool: ToolName) -> OutputItem:
    head: dict[str, Any] = {"status": "in_progress"}
    if block.kind == "text":
        head |= {"type": "message", "id": new_id("msg_"), "role": "assistant"}
        return OutputMessage(content=[], **head)
    if block.kind == "thinking":
        return OutputReasoning(type="reasoning", id=new_id("rs_"), summary=[], content=[], **head)
    head |= {"call_id": block.id or new_id("call_")}
    if tool.kind == "local_shell":
        id, action = new_id("lsh_"), shell_action("")
        return OutputLocalShellCall(type="local_shell_call", id=id, action=action, **head)
    head |= {"name": tool.name} | ({} if tool.namespace is None else {"namespace": tool.namespace})
    if tool.kind == "custom":
        return OutputCustomCall(type="custom_tool_call", id=new_id("ctc_"), input="", **head)
    return OutputFunctionCall(type="function_call", id=new_id("fc_"), arguments="", **head)


def response_usage(stats: Stats) -> ResponseUsage:
    """The usage of one answer as a response field."""
    return ResponseUsage(
        input_tokens=stats.prompt_tokens,
        input_tokens_details=ResponseInputDetails(
            cached_tokens=stats.cached_tokens, cache_write_tokens=0
        ),
        output_tokens=stats.completion_tokens,
        output_tokens_details=ResponseOutputDetails(reasoning_tokens=stats.thinking_tokens),
        total_tokens=stats.prompt_tokens + stats.completion_tokens,
    )
