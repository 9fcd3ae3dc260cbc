"""Token counts and log probabilities, as OpenAI's API reports them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from magistral_mlx.events import Stats, TokenLogprob


class PromptDetails(BaseModel):
    """Tokens of the prompt that were in the cache already."""

    cached_tokens: int


class CompletionDetails(BaseModel):
    """Tokens of the thinking, its marks included."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens. The prompt counts once, however many answers it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(BaseModel):
    """A token that might have come, and its natural log probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class Logprob(BaseModel):
    """A token that came. `bytes` may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """Log probabilities of the answer's tokens; those of the thinking are not in OpenAI's API."""

    content: list[Logprob]
    reasoning_content: Annotated[list[Logprob], Field(description="Those of the thinking.")]


def usage_of(*prompts: Sequence[Stats]) -> Usage:
    """The usage of the answers to each prompt."""
    firsts = [answers[0] for answers in prompts if answers]
    every = [stats for answers in prompts for stats in answers]
    prompt = sum(stats.prompt_tokens for stats in firsts)
    completion = sum(stats.completion_tokens for stats in every)
    cached = sum(stats.cached_tokens for stats in firsts)
    reasoning = sum(stats.thinking_tokens for stats in every)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptDetails(cached_tokens=cached),
        completion_tokens_details=CompletionDetails(reasoning_tokens=reasoning),
    )


def logprobs_of(tokens: Iterable[TokenLogprob]) -> Logprobs:
    """Apart for thinking and answer. Control tokens, which have no text, are left out."""
    answer: list[Logprob] = []
    thinking: list[Logprob] = []
    for token in tokens:
        if token.token:
            (thinking if token.thinking else answer).append(_logprob(token))
    return Logprobs(content=answer, reasoning_content=thinking)


def _logprob(token: TokenLogprob) -> Logprob:
    return Logprob(
        token=text_of(token.token),
        logprob=finite(token.logprob),
        bytes=list(token.token),
        top_logprobs=[
            TopLogprob(token=text_of(piece), logprob=finite(logprob), bytes=list(piece))
            for _, piece, logprob in token.top
        ],
    )


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI's API has this instead."""
    return max(logprob, -9999.0)


def text_of(token: bytes) -> str:
    """A token's text; what is only a part of a character shows as U+FFFD."""
    return token.decode("utf-8", "replace")
