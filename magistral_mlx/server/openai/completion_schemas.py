"""Schemas of completions of raw text: requests and responses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.server.openai.chat_response_schemas import TokenIdsOut
from magistral_mlx.server.openai.chat_schemas import StreamOptions
from magistral_mlx.server.openai.sampling_schemas import SamplingFields
from magistral_mlx.server.openai.structure_fields import StructureFields
from magistral_mlx.server.openai.usage import ChatUsage
from magistral_mlx.server.shared_fields import (
    GenerationTimings,
    Notes,
    PromptProgress,
    ServerTimings,
)

Ids = Annotated[list[int], Field(min_length=1, max_length=500_000, fail_fast=True)]
Prompts = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=128, fail_fast=True)]
    | Ids
    | Annotated[list[Ids], Field(min_length=1, max_length=128, fail_fast=True)]
)


class CompletionRequest(SamplingFields, StructureFields):
    """Text to continue, without the template of a chat and without thinking."""

    model: Annotated[
        str | None,
        Field(description="A name of /v1/models; the first one by default."),
    ] = None
    prompt: Annotated[
        Prompts,
        Field(
            description="A text or several, or token ids. Text follows the beginning-of-sequence "
            "token; control tokens spelled in it stay text. Token ids are taken as they are."
        ),
    ]
    max_tokens: Annotated[
        int | None,
        Field(ge=0, description="Tokens to produce at most; 16 if left out, 0 with echo only."),
        BeforeValidator(lambda n: None if n == -1 else n),
    ] = None
    echo: Annotated[
        bool | None,
        Field(
            description="Put the prompt before the text, and with logprobs its log probabilities."
        ),
    ] = None
    logprobs: Annotated[
        int | None,
        Field(
            ge=0,
            le=20,
            description="Report log probabilities, and so many alternatives; with echo those of "
            "the prompt's tokens too, for which all of it is computed, whatever is cached.",
        ),
    ] = None
    return_token_ids: Annotated[
        bool | None, Field(description="Tell the ids of prompt and completion, as vLLM does.")
    ] = None
    best_of: Annotated[int | None, Field(ge=1, description="Only as much as n.")] = None
    suffix: Annotated[
        str | None, Field(description="Refused: the model cannot fill in a middle.")
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def prompts(self) -> list[RawPrompt]:
        """The prompts, one for each completion of n."""
        if isinstance(self.prompt, str):
            return [RawPrompt(self.prompt)]
        if isinstance(self.prompt[0], int):
            return [RawPrompt(tuple(self.prompt))]
        return [
            RawPrompt(entry if isinstance(entry, str) else tuple(entry)) for entry in self.prompt
        ]


class CompletionLogprobs(BaseModel):
    """Tokens, log probabilities, the likeliest alternatives, and offsets of the tokens.

    With echo every token has an entry, control tokens with an empty text; the first one of the
    prompt has null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    seed: Annotated[int, Field(description="It gives this text again. Not in OpenAI's API.")] = 0
    token_ids: TokenIdsOut = []
    prompt_token_ids: TokenIdsOut = []
    timings: GenerationTimings | None = None
    notes: Notes = []


class Completion(BaseModel):
    """The completions; a stream sends the same with pieces of text."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: ChatUsage | None = None
    progress: PromptProgress | None = None
    timings: ServerTimings | None = None
