"""Events as completions, in pieces. A whole completion is its pieces put together."""

from __future__ import annotations

from typing import Any

from magistral_mlx.api.options import nth_seed
from magistral_mlx.events import (
    Event,
    Finished,
    MalformedCall,
    Prefill,
    Sample,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
)
from magistral_mlx.server.answers import fingerprint, note_of
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.figures import new_id, progress_of, timings_of
from magistral_mlx.server.openai.completion_schemas import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
)
from magistral_mlx.server.openai.figures import finite, text_of


class CompletionWriter:
    """The state of the completions of one request.

    `stats` holds those of each prompt's answers.
    """

    def __init__(self, exchange: Exchange, *, seed: int, n: int, top_logprobs: int | None) -> None:
        """`n`: completions of each prompt. `top_logprobs`: None for no log probabilities."""
        self._head: dict[str, Any] = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": exchange.created,
            "model": exchange.model,
            "system_fingerprint": fingerprint(exchange.model),
        }
        self._seed = seed
        self._n = n
        self._top = top_logprobs
        self._echo = ""
        self.stats: list[list[Stats]] = []

    def begin(self, echo: str = "") -> None:
        """The next prompt's completions follow, each after `echo`."""
        self.stats.append([])
        self._echo = echo
        self._start(0)

    def chunks(self, event: Event) -> list[Completion]:
        """What is sent for the next event."""
        note = note_of(event)
        if note:
            self._notes.append(note)
        match event:
            case Sample(index):
                self._start(index)
            case TokenLogprob():
                self._logprobs.append(event)
            case Prefill(done, total) if done < total:
                beat = self._choice("", logprobs=False)
                return [self.chunk([beat], progress=progress_of(event))]
            case Finished():
                return [self._last(event)]
            case _ if text := _text_in(event):
                return [self.chunk([self._choice(self._echoed(text))])]
        return []

    def chunk(self, choices: list[CompletionChoice], **more: Any) -> Completion:
        return Completion(choices=choices, **(self._head | more))

    def _start(self, sample: int) -> None:
        self._sample = sample
        self._waiting = self._echo  # what is still to be put before the text
        self._offset = len(self._echo)
        self._logprobs: list[TokenLogprob] = []
        self._notes: list[str] = []

    def _echoed(self, text: str) -> str:
        text, self._waiting = self._waiting + text, ""
        return text

    def _last(self, end: Finished) -> Completion:
        self.stats[-1].append(end.stats)
        choice = self._choice(self._echoed(""))
        choice.finish_reason = "stop" if end.reason == "stop" else "length"
        choice.seed = nth_seed(self._seed, self._sample)
        choice.timings = timings_of(end.stats)
        if self._notes:
            choice.notes = self._notes
        return self.chunk([choice])

    def _choice(self, text: str, *, logprobs: bool = True) -> CompletionChoice:
        found = self._gathered() if self._top is not None and logprobs else None
        index = (len(self.stats) - 1) * self._n + self._sample
        return CompletionChoice(text=text, index=index, logprobs=found, finish_reason=None)

    def _gathered(self) -> CompletionLogprobs:
        """The log probabilities since the last piece."""
        tokens, self._logprobs = [t for t in self._logprobs if t.token], []
        texts = [text_of(token.token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        top = [{text_of(piece): finite(p) for _, piece, p in token.top} for token in tokens]
        return CompletionLogprobs(
            tokens=texts,
            token_logprobs=[finite(token.logprob) for token in tokens],
            top_logprobs=top if self._top else None,
            text_offset=offsets,
        )


def joined(pieces: list[Completion]) -> list[CompletionChoice]:
    """The choices of a stream's pieces, each put together."""
    whole: dict[int, CompletionChoice] = {}
    for choice in (choice for piece in pieces for choice in piece.choices):
        if choice.index not in whole:
            whole[choice.index] = choice
            continue
        first = whole[choice.index]
        update = {name: getattr(choice, name) for name in choice.model_fields_set}
        update["text"] = first.text + choice.text
        update["logprobs"] = _joined(first.logprobs, choice.logprobs)
        whole[choice.index] = first.model_copy(update=update)
    return [whole[index] for index in sorted(whole)]


def _joined(
    first: CompletionLogprobs | None, second: CompletionLogprobs | None
) -> CompletionLogprobs | None:
    if first is None or second is None:
        return first or second
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=None
        if first.top_logprobs is None or second.top_logprobs is None
        else first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def _text_in(event: Event) -> str:
    """All that is written is text here, whatever it was meant as."""
    match event:
        case Thinking(text) | Text(text) | MalformedCall(text):
            return text
        case ToolCall(name, arguments):
            return f"[TOOL_CALLS]{name}[ARGS]{arguments}"
    return ""
