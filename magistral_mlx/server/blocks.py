"""Events as blocks: the one translation that every protocol's formatter writes from.

A block is a contiguous piece of an answer: thinking, text, or a call to a tool. For each answer
come `SampleStart`, its prefill progress, its blocks (`BlockStart`, `BlockDelta`s, `BlockEnd`), and
`SampleEnd`, which holds all of it for whole responses.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Notice,
    Prefill,
    PromptLogprobs,
    PromptToken,
    Sample,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
    ToolCallPart,
    TurnsDropped,
)

BlockKind = Literal["thinking", "text", "tool_call"]
_MARKS = re.compile(r"\[(?:TOOL_CALLS|CALL_ID|ARGS)\]")  # which no content may hold


@dataclass(eq=False)
class OutputBlock:
    """One block as far as it has been generated.

    index: among the blocks of its answer. pieces: its text; the arguments of a call, as JSON.
    name, id: of a call. complete: False once it has ended before its natural end.
    """

    kind: BlockKind
    index: int
    name: str = ""
    id: str = ""
    complete: bool = True
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text or arguments so far."""
        return "".join(self.pieces)


@dataclass(eq=False)
class SampleOutput:
    """One answer to a prompt; `end` is set once it is whole.

    logprobs: of all its tokens. prompt: the prompt's tokens, if their log-probabilities were asked
    for. notes: remarks for a person, a sentence each.
    """

    index: int
    blocks: list[OutputBlock] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: tuple[PromptToken, ...] = ()
    notes: list[str] = field(default_factory=list)
    end: Finished | None = None

    @property
    def thinking(self) -> str:
        """Text of all thinking blocks."""
        return "".join(block.text for block in self.blocks if block.kind == "thinking")

    @property
    def text(self) -> str:
        """Text of all text blocks."""
        return "".join(block.text for block in self.blocks if block.kind == "text")

    @property
    def calls(self) -> list[OutputBlock]:
        """Calls to tools, one that was cut short included."""
        return [block for block in self.blocks if block.kind == "tool_call"]

    @property
    def called(self) -> bool:
        """Whether a complete call was made."""
        return any(call.complete for call in self.calls)

    @property
    def finished(self) -> Finished:
        """The end of a whole answer."""
        assert self.end is not None
        return self.end

    @property
    def stats(self) -> Stats:
        """Statistics of a whole answer."""
        return self.finished.stats


@dataclass(frozen=True)
class SampleStart:
    """An answer begins; `PromptLogprobs` follow its prefill if they were asked for."""

    index: int
    prompt_tokens: int


@dataclass(frozen=True)
class BlockStart:
    """A block begins."""

    block: OutputBlock


@dataclass(frozen=True)
class BlockDelta:
    """More text of the block. `logprobs` are those of all tokens since the last delta."""

    block: OutputBlock
    text: str
    logprobs: list[TokenLogprob]


@dataclass(frozen=True)
class BlockEnd:
    """The block is whole, or was cut short."""

    block: OutputBlock


@dataclass(frozen=True)
class SampleEnd:
    """An answer is whole. `logprobs` are those of the tokens since the last delta."""

    sample: SampleOutput
    logprobs: list[TokenLogprob]


BlockEvent = SampleStart | Prefill | PromptLogprobs | BlockStart | BlockDelta | BlockEnd | SampleEnd


class BlockReader:
    """State of the translation of one request's events."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        """`names`: the tools' own names, by those in the prompt."""
        self._names = names or {}
        self._sample = SampleOutput(0)
        self._started = False
        self._open: OutputBlock | None = None
        self._logprobs: list[TokenLogprob] = []  # since the last delta

    def feed(self, event: Event) -> Iterator[BlockEvent]:
        """Translate the next event."""
        note = note_of(event)
        if note:
            self._sample.notes.append(note)
        match event:
            case Sample(index):
                if index != self._sample.index:
                    prompt = self._sample.prompt
                    self._sample, self._started = SampleOutput(index, prompt=prompt), False
                return
            case TokenLogprob():
                self._sample.logprobs.append(event)
                self._logprobs.append(event)
                return
            case Notice() | TurnsDropped():
                return
        if not self._started:
            self._started = True
            yield SampleStart(self._sample.index, event.total if isinstance(event, Prefill) else 0)
        match event:
            case Prefill():
                yield event
            case PromptLogprobs(tokens):
                self._sample.prompt = tokens
                yield event
            case Thinking(text):
                yield from self._text("thinking", text)
            case Text(text):
                yield from self._text("text", text)
            case ToolCallPart(_, name, arguments, id):
                yield from self._call(name, arguments, id)
            case ToolCall(name, arguments, id):
                if not self._is_open("tool_call"):
                    yield from self._call(name, arguments, id)
                yield from self._close()
            case MalformedCall(text):
                if self._is_open("tool_call"):
                    yield from self._close(complete=False)
                elif written := _MARKS.sub(" ", text).strip():
                    yield from self._text("text", written)
            case Finished(reason):
                yield from self._close(complete=reason == "stop")
                self._sample.end = event
                yield SampleEnd(self._sample, self._take_logprobs())

    def _is_open(self, kind: BlockKind) -> bool:
        return self._open is not None and self._open.kind == kind

    def _text(self, kind: BlockKind, text: str) -> Iterator[BlockEvent]:
        if not self._is_open(kind):
            yield from self._start(kind)
        yield self._delta(text)

    def _call(self, name: str, arguments: str, id: str | None) -> Iterator[BlockEvent]:
        if not self._is_open("tool_call"):
            yield from self._start("tool_call", name=self._names.get(name, name), id=id or "")
        if arguments:
            yield self._delta(arguments)

    def _start(self, kind: BlockKind, *, name: str = "", id: str = "") -> Iterator[BlockEvent]:
        yield from self._close()
        self._open = OutputBlock(kind, len(self._sample.blocks), name, id)
        self._sample.blocks.append(self._open)
        yield BlockStart(self._open)

    def _delta(self, text: str) -> BlockDelta:
        assert self._open is not None
        self._open.pieces.append(text)
        return BlockDelta(self._open, text, self._take_logprobs())

    def _close(self, *, complete: bool = True) -> Iterator[BlockEvent]:
        block, self._open = self._open, None
        if block is not None:
            block.complete = complete
            yield BlockEnd(block)

    def _take_logprobs(self) -> list[TokenLogprob]:
        taken, self._logprobs = self._logprobs, []
        return taken


async def read_blocks(
    events: AsyncIterator[Event], names: Mapping[str, str] | None = None
) -> AsyncIterator[BlockEvent]:
    """Translate a request's events as they come.

    Args:
        names: the tools' own names, by those in the prompt.
    """
    reader = BlockReader(names)
    async for event in events:
        for translated in reader.feed(event):
            yield translated


async def read_samples(
    events: AsyncIterator[Event], names: Mapping[str, str] | None = None
) -> list[SampleOutput]:
    """Read to the end -> the whole answers, one or as many as were asked for.

    Args:
        names: the tools' own names, by those in the prompt.

    Raises:
        MagistralError: a failure during generation.
    """
    blocks = read_blocks(events, names)
    return [event.sample async for event in blocks if isinstance(event, SampleEnd)]


def note_of(event: Event) -> str | None:
    """The remark for a person that an event carries, if any."""
    match event:
        case Notice(text):
            return text
        case TurnsDropped(turns):
            return f"The oldest {turns} turns were left out: the context could not hold them."
        case MalformedCall(_, problem):
            return f"What the model wrote as a tool call is none: {problem}."
        case Finished("memory"):
            return "The answer was ended: there is no memory for a longer one."
        case Finished("time"):
            return "The answer was ended: its time was over."
        case Finished("cancelled"):
            return "The answer was stopped by the server."
    return None
