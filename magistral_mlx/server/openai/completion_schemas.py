"""Completions of raw text: what a request may hold, and what comes back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.server.figures import Notes, Progress, Timings
from magistral_mlx.server.openai.chat_schemas import StreamOptions
from magistral_mlx.server.openai.figures import Usage
from magistral_mlx.server.openai.sampling_schemas import SamplingFields

Ids = Annotated[list[int], Field(min_length=1, max_length=500_000, fail_fast=True)]
Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=128, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=128, fail_fast=True)]
)


class CompletionRequest(SamplingFields):
    """Text to go on with, without the template of a chat and without thinking."""

    model: Annotated[
        str | None,
        Field(description="As /v1/models lists it; the first one there where this is left out."),
    ] = None
    prompt: Annotated[
        Prompts,
        Field(
            description="A text or several, or token ids. Text follows the beginning-of-sequence "
            "token; control tokens spelled in it stay text. Token ids are taken as they are."
        ),
    ]
    max_tokens: Annotated[
        int | None, Field(ge=1, description="Tokens to produce at most; 16 if left out.")
    ] = None
    echo: Annotated[
        bool | None, Field(description="Put the prompt before the text. Not with token ids.")
    ] = None
    logprobs: Annotated[
        int | None,
        Field(ge=0, le=20, description="Tell each token's log probability, and of so many more."),
    ] = None
    best_of: Annotated[int | None, Field(ge=1, description="Only as much as n.")] = None
    suffix: Annotated[
        str | None, Field(description="Refused: the model cannot fill in a middle.")
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def prompts(self) -> list[RawPrompt]:
        """One for each that is completed."""
        if isinstance(self.prompt, str):
            return [RawPrompt(self.prompt)]
        if isinstance(self.prompt[0], int):
            return [RawPrompt(tuple(self.prompt))]
        return [
            RawPrompt(entry if isinstance(entry, str) else tuple(entry)) for entry in self.prompt
        ]


class CompletionLogprobs(BaseModel):
    """The tokens, their log probabilities, the likeliest ones, and where each token begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    seed: Annotated[int, Field(description="It gives this text again. Not in OpenAI's API.")] = 0
    timings: Timings | None = None
    notes: Notes = []


class Completion(BaseModel):
    """The completions; a stream sends the same with pieces of text."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | None = None
    progress: Progress | None = None
