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


class PromptProgress(BaseModel):
    """Prefill progress of a long prompt. Only on this server."""

    prompt_tokens: int
    done_tokens: int
    seconds_left: float | None


def timings_of(stats: Stats) -> GenerationTimings:
    """The timings of one answer as a response field."""
    values = stats.as_dict()
    return GenerationTimings(**{name: values[name] for name in GenerationTimings.model_fields})


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
