"""Tokens of one sample as the events that they stand for: text, thinking, calls, probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from magistral_mlx.chat.parser import Parser
from magistral_mlx.chat.stop import StopStrings
from magistral_mlx.events import (
    Event,
    MalformedCall,
    PromptLogprobs,
    PromptToken,
    Text,
    TokenLogprob,
    ToolCall,
    ToolCallPart,
)

if TYPE_CHECKING:
    from magistral_mlx.engine.logprobs import PromptLogprobCollector
    from magistral_mlx.engine.sequence import Token
    from magistral_mlx.runtime.generation_request import GenerationRequest


class TokenEvents:
    """The state of one sample between its tokens."""

    def __init__(self, inputs: GenerationRequest, seed: int) -> None:
        """`seed`: of the sample, from which ids of calls are made."""
        self._tokenizer = inputs.tokenizer
        self._parser = Parser(inputs.tokenizer, thinking=inputs.prompt.inside_thinking)
        self._stops = StopStrings(inputs.stop, include=inputs.include_stop)
        self._hidden_stops = frozenset() if inputs.include_stop else inputs.hidden_stops
        self._seed = seed
        self._prompt = inputs.prompt.tokens
        self._calls = 0
        self._parallel = inputs.parallel_calls

    @property
    def thinking_tokens(self) -> int:
        """Tokens of the trace so far."""
        return self._parser.thinking_tokens

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer so far, those of calls and of the end among them."""
        return self._parser.answer_tokens

    @property
    def stopped_by(self) -> str | None:
        """The stop string that has come, which ends the answer."""
        return self._stops.matched

    def feed(self, token: Token) -> list[Event]:
        """Return the events that the token completes."""
        before = self._parser.thinking
        if token.id in self._hidden_stops:
            # It ends the answer and is no part of it, so only its count is kept.
            self._parser.count(token.id)
            events: list[Event] = []
        else:
            events = self._shown(self._parser.feed(token.id))
        if token.logprob is not None:
            events.insert(0, self._logprob(token, before))
        return events

    def prompt_logprobs(self, found: PromptLogprobCollector) -> PromptLogprobs:
        """Return the event of a prompt that has been prefilled."""
        bytes_of = self._tokenizer.token_bytes
        first, *rest = self._prompt.tolist()
        tokens = [PromptToken(first, bytes_of(first), None)]
        for id, (logprob, top) in zip(rest, found.read(), strict=True):
            likeliest = tuple((other, bytes_of(other), value) for other, value in top)
            tokens.append(PromptToken(id, bytes_of(id), logprob, likeliest))
        return PromptLogprobs(tuple(tokens))

    def finish(self) -> list[Event]:
        """Return the events of text that was still incomplete at the end."""
        events = self._shown(self._parser.finish())
        waiting = self._stops.finish()
        return [*events, Text(waiting)] if waiting else events

    def _shown(self, pieces: Sequence[Event]) -> list[Event]:
        """Text up to a stop string; ids for calls, so that results can name them."""
        shown: list[Event] = []
        for piece in pieces:
            if isinstance(piece, Text):
                text = self._stops.feed(piece.text)
                if text:
                    shown.append(Text(text))
            elif self.stopped_by is None and not self._is_surplus(piece):
                waiting = self._stops.finish()
                if waiting:
                    shown.append(Text(waiting))
                shown.append(self._with_id(piece))
        return shown

    def _is_surplus(self, piece: Event) -> bool:
        """Whether it is a call beyond the only one that is allowed."""
        return isinstance(piece, ToolCall) and self._calls > 0 and not self._parallel

    def _with_id(self, piece: Event) -> Event:
        """Calls and their parts with an id."""
        if isinstance(piece, ToolCallPart):
            return replace(piece, id=self._id(piece.index))
        if isinstance(piece, ToolCall | MalformedCall):
            self._calls += 1
        if isinstance(piece, ToolCall) and piece.id is None:
            return replace(piece, id=self._id(self._calls - 1))
        return piece

    def _id(self, index: int) -> str:
        """Nine characters, as every version of the template accepts; the same for the same seed."""
        key = f"{self._seed} {len(self._prompt)} {index}"
        return hashlib.sha256(key.encode()).hexdigest()[:9]

    def _logprob(self, token: Token, thinking_before: bool) -> TokenLogprob:
        bytes_of = self._tokenizer.token_bytes
        assert token.logprob is not None
        return TokenLogprob(
            token.id,
            bytes_of(token.id),
            token.logprob,
            tuple((id, bytes_of(id), logprob) for id, logprob in token.top),
            thinking=thinking_before or self._parser.thinking,
        )
