"""Formatter of Ollama's answers: blocks as lines of JSON, and as a whole answer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from magistral_mlx.events import Event, TokenLogprob
from magistral_mlx.server.blocks import (
    BlockDelta,
    BlockEnd,
    BlockEvent,
    OutputBlock,
    SampleEnd,
    SampleOutput,
    read_blocks,
)
from magistral_mlx.server.ollama.response_schemas import (
    OllamaChatAnswer,
    OllamaEnd,
    OllamaFunctionCallOut,
    OllamaGeneration,
    OllamaLogprob,
    OllamaMessageOut,
    OllamaToolCallOut,
    OllamaTopLogprob,
)
from magistral_mlx.server.openai.usage import finite, text_of

_SECOND = 10**9


@dataclass
class OllamaFormatter:
    """Formats the answer to one request.

    chat: as /api/chat has it, else as /api/generate. thinking: whether it is shown. logprobs:
    whether they are reported. names: of the tools, as `own_names` gives them.
    """

    model: str
    chat: bool
    thinking: bool = True
    logprobs: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    _begun: float = field(default_factory=time.perf_counter)

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[OllamaEnd]:
        """All lines of a stream."""
        calls = 0
        async for event in read_blocks(events, self.names):
            for line in self._lines(event, calls):
                yield line
            if isinstance(event, BlockEnd) and event.block.kind == "tool_call":
                calls += 1

    def empty(self) -> OllamaEnd:
        """A line without content, which keeps a client from hanging up."""
        return self._line("")

    def loaded(self, *, stays: bool) -> OllamaEnd:
        """The answer to a request without a prompt, at which the model is loaded or unloaded."""
        line = self._line("")
        return line.model_copy(update={"done": True, "done_reason": "load" if stays else "unload"})

    def whole(self, sample: SampleOutput) -> OllamaEnd:
        """The answer at once."""
        calls = [call for call in sample.calls if call.complete]
        line = self._line(
            sample.text,
            sample.thinking if self.thinking else "",
            [_call(call, n) for n, call in enumerate(calls)],
            sample.logprobs,
        )
        return line.model_copy(update=self._end(sample))

    def _lines(self, event: BlockEvent, calls: int) -> Iterator[OllamaEnd]:
        match event:
            case BlockDelta(OutputBlock("thinking"), text, logprobs):
                if self.thinking:
                    yield self._line("", text, logprobs=logprobs)
            case BlockDelta(OutputBlock("text"), text, logprobs):
                yield self._line(text, logprobs=logprobs)
            case BlockEnd(OutputBlock("tool_call", complete=True) as call):
                yield self._line("", calls=[_call(call, calls)])
            case SampleEnd(sample, logprobs):
                yield self._line("", logprobs=logprobs).model_copy(update=self._end(sample))

    def _line(
        self,
        text: str,
        thinking: str = "",
        calls: list[OllamaToolCallOut] | None = None,
        logprobs: Iterable[TokenLogprob] = (),
    ) -> OllamaEnd:
        head: dict[str, Any] = {
            "model": self.model,
            "created_at": datetime.now(UTC),
            "done": False,
        }
        if self.logprobs and logprobs:
            head["logprobs"] = [_logprob(token) for token in logprobs if token.token]
        more: dict[str, Any] = {"thinking": thinking} if thinking else {}
        if not self.chat:
            return OllamaGeneration(**head, response=text, **more)
        if calls:
            more["tool_calls"] = calls
        message = OllamaMessageOut(role="assistant", content=text, **more)
        return OllamaChatAnswer(**head, message=message)

    def _end(self, sample: SampleOutput) -> dict[str, Any]:
        """The fields of an answer's end."""
        stats = sample.stats
        total = time.perf_counter() - self._begun
        reason: Literal["stop", "length"] = "stop" if sample.finished.reason == "stop" else "length"
        fields = {
            "done": True,
            "done_reason": reason,
            "total_duration": int(total * _SECOND),
            "load_duration": 0,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": int(stats.prefill_seconds * _SECOND),
            "eval_count": stats.completion_tokens,
            "eval_duration": int(stats.decode_seconds * _SECOND),
        }
        return fields | ({"notes": sample.notes} if sample.notes else {})


def _call(call: OutputBlock, index: int) -> OllamaToolCallOut:
    try:
        arguments = json.loads(call.text or "{}")
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):  # what the model wrote, where it is no object
        arguments = {"arguments": call.text}
    function = OllamaFunctionCallOut(index=index, name=call.name, arguments=arguments)
    return OllamaToolCallOut(id=call.id, function=function)


def _logprob(token: TokenLogprob) -> OllamaLogprob:
    top = [
        OllamaTopLogprob(token=text_of(piece), logprob=finite(value), bytes=list(piece))
        for _, piece, value in token.top
    ]
    more: dict[str, Any] = {"top_logprobs": top} if top else {}
    return OllamaLogprob(
        token=text_of(token.token),
        logprob=finite(token.logprob),
        bytes=list(token.token),
        **more,
    )
