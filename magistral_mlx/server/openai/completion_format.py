"""Formatter of completions: blocks as pieces of a stream, and as whole completions."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from magistral_mlx.api.options import nth_seed
from magistral_mlx.events import Event, Prefill, PromptLogprobs, PromptToken, Stats, TokenLogprob
from magistral_mlx.server.blocks import (
    BlockDelta,
    BlockEvent,
    BlockStart,
    OutputBlock,
    SampleEnd,
    SampleOutput,
    SampleStart,
    read_blocks,
)
from magistral_mlx.server.openai.completion_schemas import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
)
from magistral_mlx.server.openai.usage import finite, text_of, usage_of
from magistral_mlx.server.shared_fields import (
    fingerprint,
    new_id,
    progress_of,
    server_timings_of,
    timings_of,
)


@dataclass
class CompletionFormatter:
    """Formats the completions of one request, prompt after prompt.

    seed: of the first completion. n: completions of each prompt. top_logprobs: None for no log
    probabilities. echo: whether completions begin with their prompt. `stats` holds those of each
    prompt's completions.
    """

    model: str
    created: int
    seed: int
    n: int = 1
    top_logprobs: int | None = None
    echo: bool = False

    def __post_init__(self) -> None:
        self._id = new_id("cmpl-")
        self._echo = ""
        self._prompt: tuple[PromptToken, ...] = ()
        self._ids: Callable[[], list[int]] | None = None
        self._sample = 0
        self._offset = 0
        self.stats: list[list[Stats]] = []

    def start_prompt(self, echo: str = "", ids: Callable[[], list[int]] | None = None) -> None:
        """Begin the next prompt; its completions begin with `echo`.

        `ids`: tells the prompt's tokens, where theirs and the completions' are reported.
        """
        self._echo, self._prompt, self._ids = echo, (), ids
        self.stats.append([])

    async def stream(self, events: AsyncIterator[Event]) -> AsyncIterator[Completion]:
        """The pieces of one prompt's completions."""
        async for event in read_blocks(events):
            for piece in self.write(event):
                yield piece

    def write(self, event: BlockEvent) -> Iterator[Completion]:
        """The pieces for the next block event. All blocks are text here."""
        match event:
            case SampleStart(index):
                self._sample, self._offset = index, len(self._echo)
                if self._ids is not None:
                    choice = self._choice("", None, prompt_token_ids=self._ids())
                    yield self.completion([choice])
                if self._prompt:  # of an earlier sample
                    yield self._echoed()
                elif self._echo and self.top_logprobs is None:
                    yield self._piece(self._echo)
            case PromptLogprobs(tokens) if self.echo and self.top_logprobs is not None:
                self._prompt = tokens
                yield self._echoed()
            case Prefill(done, total) if done < total:
                yield self._piece("", progress=progress_of(event))
            case BlockStart(OutputBlock("tool_call") as call):
                yield self._piece(_call_head(call))
            case BlockDelta(_, text, logprobs):
                choice = self._choice(text, self._logprobs(logprobs), **self._token_ids(logprobs))
                yield self.completion([choice])
            case SampleEnd(sample, logprobs):
                self.stats[-1].append(sample.stats)
                choice = self._choice("", self._logprobs(logprobs), **self._token_ids(logprobs))
                timings = server_timings_of(sample.stats)
                yield self.completion(
                    [choice.model_copy(update=self._end(sample))], timings=timings
                )

    def usage(self) -> Completion:
        """The piece after all others, with the usage of all prompts."""
        return self.completion([], usage=usage_of(*self.stats))

    def whole(self, samples: Sequence[SampleOutput]) -> list[CompletionChoice]:
        """One prompt's completions."""
        return [self._whole_choice(sample) for sample in samples]

    def completion(self, choices: list[CompletionChoice], **more: Any) -> Completion:
        """An object of these choices."""
        return Completion(
            id=self._id,
            object="text_completion",
            created=self.created,
            model=self.model,
            choices=choices,
            system_fingerprint=fingerprint(self.model),
            **more,
        )

    def _whole_choice(self, sample: SampleOutput) -> CompletionChoice:
        self._sample, self._offset = sample.index, len(self._echo)
        self._prompt = sample.prompt
        self.stats[-1].append(sample.stats)
        texts = [
            _call_head(block) + block.text if block.kind == "tool_call" else block.text
            for block in sample.blocks
        ]
        logprobs = self._logprobs(sample.logprobs, echoed=True)
        ids = self._token_ids(sample.logprobs)
        if self._ids is not None:
            ids["prompt_token_ids"] = self._ids()
        choice = self._choice(self._echo + "".join(texts), logprobs, **ids)
        return choice.model_copy(update=self._end(sample))

    def _end(self, sample: SampleOutput) -> dict[str, Any]:
        """The fields of a completion's end."""
        fields: dict[str, Any] = {
            "finish_reason": "stop" if sample.finished.reason == "stop" else "length",
            "seed": nth_seed(self.seed, sample.index),
            "timings": timings_of(sample.stats),
        }
        return fields | ({"notes": sample.notes} if sample.notes else {})

    def _piece(
        self, text: str, logprobs: CompletionLogprobs | None = None, **more: Any
    ) -> Completion:
        return self.completion([self._choice(text, logprobs)], **more)

    def _token_ids(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {} if self._ids is None else {"token_ids": [token.id for token in tokens]}

    def _choice(
        self, text: str, logprobs: CompletionLogprobs | None, **more: Any
    ) -> CompletionChoice:
        index = (len(self.stats) - 1) * self.n + self._sample
        return CompletionChoice(
            text=text, index=index, logprobs=logprobs, finish_reason=None, **more
        )

    def _echoed(self) -> Completion:
        """The piece of the prompt with its log probabilities."""
        return self._piece(self._echo, self._logprobs((), echoed=True))

    def _logprobs(
        self, logprobs: Sequence[TokenLogprob], *, echoed: bool = False
    ) -> CompletionLogprobs | None:
        """Those of `logprobs`, after the prompt's if it is `echoed`.

        With echo control tokens have entries too, so that each token's stands at its index.
        """
        if self.top_logprobs is None:
            return None
        tokens = [token for token in logprobs if token.token or self.echo]
        texts = [text_of(token.token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        every: list[PromptToken | TokenLogprob] = [*self._prompt, *tokens] if echoed else [*tokens]
        if echoed:
            offsets = [*_starts(self._prompt), *offsets]
            texts = [*(text_of(token.token) for token in self._prompt), *texts]
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[
                None if token.logprob is None else finite(token.logprob) for token in every
            ],
            top_logprobs=[_top(token) for token in every] if self.top_logprobs else None,
            text_offset=offsets,
        )


def _starts(tokens: Sequence[PromptToken]) -> list[int]:
    """The offset of each token in their text; of one within a character, the character's."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    starts, length = [], 0
    for token in tokens:
        starts.append(length)
        length += len(decoder.decode(token.token))
    return starts


def _top(token: PromptToken | TokenLogprob) -> dict[str, float] | None:
    """Texts and log probabilities of the likeliest tokens; of equal texts the likeliest token's."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for _, piece, logprob in token.top:
        top.setdefault(text_of(piece), finite(logprob))
    return top


def _call_head(call: OutputBlock) -> str:
    return f"[TOOL_CALLS]{call.name}[ARGS]"
