"""What is told of an answer beside it, in fields that no API has, and the ids of answers."""

from __future__ import annotations

import secrets
from typing import Annotated

from pydantic import BaseModel, Field

from magistral_mlx.events import Prefill, Stats

Notes = Annotated[
    list[str],
    Field(description="What a person should know of the answer. Only this server tells it."),
]


class Timings(BaseModel):
    """Seconds and speeds of one answer. Only this server tells them."""

    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float


class Progress(BaseModel):
    """How much of the prompt has been read. Only this server tells it."""

    prompt_tokens: int
    done_tokens: int
    seconds_left: float | None


def timings_of(stats: Stats) -> Timings:
    figures = stats.as_dict()
    return Timings(**{name: figures[name] for name in Timings.model_fields})


def progress_of(event: Prefill) -> Progress:
    return Progress(
        prompt_tokens=event.total, done_tokens=event.done, seconds_left=event.seconds_left
    )


def new_id(kind: str) -> str:
    """An id that nothing else has, such as chatcmpl-…"""
    return kind + secrets.token_hex(12)
