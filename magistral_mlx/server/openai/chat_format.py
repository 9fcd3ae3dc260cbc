"""Formatter of chat completions: blocks as chunks of a stream, and as a whole completion."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from magistral_mlx.api.options import nth_seed
from magistral_mlx.events import Event, Finished, Prefill, Stats, TokenLogprob
from magistral_mlx.server.blocks import (
    BlockDelta,
    BlockEnd,
    BlockEvent,
    BlockStart,
    OutputBlock,
    SampleEnd,
    SampleOutput,
    SampleStart,
    read_blocks,
)
from magistral_mlx.server.openai.chat_response_schemas import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatContent,
    ChatDelta,
    ChatMessageOut,
    FinishReason,
    FunctionCallDelta,
    FunctionCallOut,
    TextChunk,
    ThinkingChunk,
    ToolCallDelta,
    ToolCallOut,
)
from magistral_mlx.server.openai.usage import logprobs_of, usage_of
from magistral_mlx.server.shared_fields import (
    fingerprint,
    new_id,
    progress_of,
    server_timings_of,
    timings_of,
)


@dataclass
class ChatFormatter:
    """Formats the answers to one request.

    seed: of the first answer. logprobs: whether they are reported. prompt_ids: tells the ids of the
    prompt, where those of all tokens are reported. mistral: in Mistral's dialect: thinking goes
    into the content, and a stream has usage with its last chunk. thinking: whether
    it is shown. usage: a stream ends with a chunk of usage alone. whole_calls: it has each call
    whole in one delta. names: the tools' own names, by those in the prompt.
    """

    model: str
    created: int
    seed: int
    logprobs: bool = False
    prompt_ids: Callable[[], list[int]] | None = None
    mistral: bool = False
    thinking: bool = True
    usage: bool = False
    whole_calls: bool = False
    names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._id = new_id("chatcmpl-")
        self._sample = 0
        self._calls = 0  # of the current answer
        self._stats: list[Stats] = []
        self._held: list[TokenLogprob] = []  # of a call that is sent once it is whole

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[ChatChunk]:
        """All chunks of a stream."""
        async for event in read_blocks(events, self.names):
            for chunk in self.write(event):
                yield chunk
        if self.usage and not self.mistral:
            yield self._chunk([], usage=usage_of(self._stats))

    def write(self, event: BlockEvent) -> Iterator[ChatChunk]:
        """The chunks for the next block event."""
        match event:
            case SampleStart(index):
                self._sample, self._calls = index, 0
                start = self._choice(ChatDelta(role="assistant", content=""))
                yield self._chunk([start], **self._prompt_ids())
            case Prefill(done, total) if done < total:
                yield self._chunk([self._choice(ChatDelta())], progress=progress_of(event))
            case BlockStart(OutputBlock("tool_call")) if self.whole_calls:
                self._calls, self._held = self._calls + 1, []
            case BlockDelta(OutputBlock("tool_call"), _, logprobs) if self.whole_calls:
                self._held += logprobs
            case BlockEnd(OutputBlock("tool_call", name=name, id=id) as block) if self.whole_calls:
                function = FunctionCallDelta(name=name, arguments=block.text)
                yield self._call_delta(self._held, id=id, type="function", function=function)
            case BlockStart(OutputBlock("tool_call", name=name, id=id)):
                self._calls += 1
                function = FunctionCallDelta(name=name, arguments="")
                yield self._call_delta(id=id, type="function", function=function)
            case BlockDelta(OutputBlock("tool_call"), text, logprobs):
                yield self._call_delta(logprobs, function=FunctionCallDelta(arguments=text))
            case BlockDelta(OutputBlock("thinking")) if not self.thinking:
                return
            case BlockDelta(OutputBlock("thinking"), text, logprobs) if self.mistral:
                yield self._delta(ChatDelta(content=[_thinking_chunk(text)]), logprobs)
            case BlockDelta(OutputBlock("thinking"), text, logprobs):
                yield self._delta(ChatDelta(reasoning_content=text), logprobs)
            case BlockDelta(_, text, logprobs):
                yield self._delta(ChatDelta(content=text), logprobs)
            case SampleEnd(sample, logprobs):
                self._stats.append(sample.stats)
                choice = self._choice(
                    ChatDelta(content="") if self.mistral else ChatDelta(), logprobs
                )
                more: dict[str, Any] = {"timings": server_timings_of(sample.stats)}
                if self.mistral:
                    more["usage"] = usage_of(self._stats)
                yield self._chunk([choice.model_copy(update=self._end(sample))], **more)

    def whole(self, samples: list[SampleOutput]) -> ChatCompletion:
        """All answers as one completion."""
        return ChatCompletion(
            **self._head("chat.completion"),
            choices=[self._whole_choice(sample) for sample in samples],
            usage=usage_of([sample.stats for sample in samples]),
            timings=server_timings_of(samples[-1].stats),
            **self._prompt_ids(),
        )

    def _whole_choice(self, sample: SampleOutput) -> ChatChoice:
        shown = [token for token in sample.logprobs if self.thinking or not token.thinking]
        logprobs = logprobs_of(shown) if self.logprobs else None
        thinking = sample.thinking if self.thinking else ""
        message = _message(sample, thinking, mistral=self.mistral)
        return ChatChoice(
            index=sample.index,
            message=message,
            logprobs=logprobs,
            **self._end(sample),
            **self._ids(shown),
        )

    def _end(self, sample: SampleOutput) -> dict[str, Any]:
        """The fields of an answer's end."""
        fields: dict[str, Any] = {
            "finish_reason": finish_reason(sample.finished, called=sample.called),
            "seed": nth_seed(self.seed, sample.index),
            "timings": timings_of(sample.stats),
        }
        return fields | ({"notes": sample.notes} if sample.notes else {})

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self._id, "object": kind, "created": self.created, "model": self.model}
        return head | {"system_fingerprint": fingerprint(self.model)}

    def _chunk(self, choices: list[ChatChunkChoice], **more: Any) -> ChatChunk:
        head = self._head("chat.completion.chunk") | ({"usage": None} if self.usage else {})
        return ChatChunk(**(head | {"choices": choices} | more))

    def _choice(self, delta: ChatDelta, logprobs: Sequence[TokenLogprob] = ()) -> ChatChunkChoice:
        found = logprobs_of(logprobs) if self.logprobs and logprobs else None
        return ChatChunkChoice(
            index=self._sample,
            delta=delta,
            finish_reason=None,
            logprobs=found,
            **self._ids(logprobs),
        )

    def _ids(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The field with the ids of tokens, if it was asked for."""
        return {} if self.prompt_ids is None else {"token_ids": [token.id for token in tokens]}

    def _prompt_ids(self) -> dict[str, Any]:
        return {} if self.prompt_ids is None else {"prompt_token_ids": self.prompt_ids()}

    def _delta(self, delta: ChatDelta, logprobs: Sequence[TokenLogprob] = ()) -> ChatChunk:
        return self._chunk([self._choice(delta, logprobs)])

    def _call_delta(self, logprobs: Sequence[TokenLogprob] = (), **fields: Any) -> ChatChunk:
        call = ToolCallDelta(index=self._calls - 1, **fields)
        return self._delta(ChatDelta(tool_calls=[call]), logprobs)


def finish_reason(end: Finished, *, called: bool) -> FinishReason:
    """OpenAI's word for an end. Where memory or the server ended an answer its `notes` say so."""
    if end.reason != "stop":
        return "length"
    return "tool_calls" if called else "stop"


def _message(sample: SampleOutput, thinking: str, *, mistral: bool) -> ChatMessageOut:
    text, calls = sample.text, sample.calls
    content: ChatContent = text or (None if calls else "")
    if mistral and thinking:
        content = [_thinking_chunk(thinking)]
        if text:
            content.append(TextChunk(type="text", text=text))
    message = ChatMessageOut(role="assistant", content=content, refusal=None)
    if thinking and not mistral:
        message.reasoning_content = thinking
    if calls:
        message.tool_calls = [_call(call) for call in calls]
    return message


def _call(call: OutputBlock) -> ToolCallOut:
    function = FunctionCallOut(name=call.name, arguments=call.text)
    return ToolCallOut(id=call.id, type="function", function=function)


def _thinking_chunk(text: str) -> ThinkingChunk:
    return ThinkingChunk(type="thinking", thinking=[TextChunk(type="text", text=text)])
