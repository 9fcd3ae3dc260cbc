"""Response fields, ids and the fingerprint that all protocols share."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated

from pydantic import BaseModel, Field

from magistral_mlx import __version__
from magistral_mlx.events import Prefill, Stats

Notes = Annotated[
    list[str],
    Field(description="Remarks for a person, such as turns left out. Only on this server."),
]


class GenerationTimings(BaseModel):
    """Seconds and speeds of one answer. Only on this server."""

    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


class ServerTimings(BaseModel):
    """Counts and times of the last answer, in llama-server's words; `prompt_n` is what was read."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    draft_n: int
    draft_n_accepted: int


class PromptProgress(BaseModel):
    """Prefill progress of a long prompt. Only on this server."""

    prompt_tokens: int
    done_tokens: int
    seconds_left: float | None


def timings_of(stats: Stats) -> GenerationTimings:
    """The timings of one answer as a response field."""
    values = stats.as_dict()
    return GenerationTimings(**{name: values[name] for name in GenerationTimings.model_fields})


def server_timings_of(stats: Stats) -> ServerTimings:
    """The timings of one answer, in llama-server's words."""
    read = stats.prompt_tokens - stats.cached_tokens
    prompt_ms, predicted_ms = 1000 * stats.prefill_seconds, 1000 * stats.decode_seconds
    return ServerTimings(
        cache_n=stats.cached_tokens,
        prompt_n=read,
        prompt_ms=prompt_ms,
        prompt_per_token_ms=prompt_ms / read if read else 0.0,
        prompt_per_second=stats.prefill_tokens_per_second,
        predicted_n=stats.completion_tokens,
        predicted_ms=predicted_ms,
        predicted_per_token_ms=predicted_ms / max(1, stats.completion_tokens),
        predicted_per_second=stats.decode_tokens_per_second,
        draft_n=stats.drafted,
        draft_n_accepted=stats.accepted,
    )


def progress_of(event: Prefill) -> PromptProgress:
    """Prefill progress as a response field."""
    return PromptProgress(
        prompt_tokens=event.total, done_tokens=event.done, seconds_left=event.seconds_left
    )


def new_id(prefix: str) -> str:
    """A random id with a prefix, such as chatcmpl-…"""
    return prefix + secrets.token_hex(12)


def fingerprint(model: str) -> str:
    """Identifies what a seed depends on: the version and the model."""
    return "mlx_" + hashlib.sha256(f"{__version__} {model}".encode()).hexdigest()[:10]
