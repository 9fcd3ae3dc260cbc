"""Token counts and log probabilities, as OpenAI's API reports them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from magistral_mlx.events import Stats, TokenLogprob


class PromptTokensDetails(BaseModel):
    """Tokens of the prompt that were in the cache already."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Tokens of the thinking, its marks included."""

    reasoning_tokens: int


class ChatUsage(BaseModel):
    """Tokens. The prompt counts once, however many answers it got."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatTopLogprob(BaseModel):
    """A token that might have come, and its natural log probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(BaseModel):
    """A token that came. `bytes` may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[ChatTopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of the answer's tokens; those of the thinking are not in OpenAI's API."""

    content: list[ChatLogprob]
    reasoning_content: Annotated[list[ChatLogprob], Field(description="Those of the thinking.")]


def usage_of(*prompts: Sequence[Stats]) -> ChatUsage:
    """The usage of the answers to each prompt."""
    firsts = [answers[0] for answers in prompts if answers]
    every = [stats for answers in prompts for stats in answers]
    prompt = sum(stats.prompt_tokens for stats in firsts)
    completion = sum(stats.completion_tokens for stats in every)
    cached = sum(stats.cached_tokens for stats in firsts)
    reasoning = sum(stats.thinking_tokens for stats in every)
    return ChatUsage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
    )


def logprobs_of(tokens: Iterable[TokenLogprob]) -> ChatLogprobs:
    """Apart for thinking and answer. Control tokens, which have no text, are left out."""
    answer: list[ChatLogprob] = []
    thinking: list[ChatLogprob] = []
    for token in tokens:
        if token.token:
            (thinking if token.thinking else answer).append(_logprob(token))
    return ChatLogprobs(content=answer, reasoning_content=thinking)


def _logprob(token: TokenLogprob) -> ChatLogprob:
    return ChatLogprob(
        token=text_of(token.token),
        logprob=finite(token.logprob),
        bytes=list(token.token),
        top_logprobs=[
            ChatTopLogprob(token=text_of(piece), logprob=finite(logprob), bytes=list(piece))
            for _, piece, logprob in token.top
        ],
    )


def finite(logprob: float) -> float:
    """JSON has no infinity: OpenAI's API has this instead."""
    return max(logprob, -9999.0)


def text_of(token: bytes) -> str:
    """A token's text; what is only a part of a character shows as U+FFFD."""
    return token.decode("utf-8", "replace")
