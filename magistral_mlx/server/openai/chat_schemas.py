"""What a request for a chat completion may hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from magistral_mlx.server.efforts import DESCRIPTION, Effort
from magistral_mlx.server.functions import FunctionOnly
from magistral_mlx.server.openai.message_schemas import ChatMessage
from magistral_mlx.server.openai.sampling_schemas import SamplingFields
from magistral_mlx.server.openai.tool_schemas import ChoiceIn, FormatIn, ToolIn
from magistral_mlx.server.schema import Many, Request, Some

Thinking = Literal["on", "off"] | bool | Annotated[int, Field(ge=1)]


class StreamOptions(Request):
    """What a stream tells beside the answer."""

    include_usage: Annotated[
        bool | None, Field(description="End with a chunk that has no choices, but the usage.")
    ] = None


class ChatRequest(SamplingFields):
    """A conversation to answer. The fields that OpenAI's API lacks say so."""

    model: Annotated[
        str | None,
        Field(description="As /v1/models lists it; the first one there where this is left out."),
    ] = None
    messages: Some[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Annotated[
        int | None,
        Field(ge=1, description="Tokens to produce at most, thinking included."),
    ] = None
    max_tokens: Annotated[
        int | None, Field(ge=1, description="The old name of max_completion_tokens.")
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    tools: Many[Annotated[ToolIn, FunctionOnly]] | None = None
    tool_choice: ChoiceIn | None = None
    parallel_tool_calls: Annotated[
        bool | None, Field(description="False for one call at most.")
    ] = None
    response_format: FormatIn | None = None
    reasoning_effort: Annotated[Effort | None, Field(description=DESCRIPTION)] = None
    thinking: Annotated[
        Thinking | None,
        Field(
            description='"on", "off", or the most tokens of thinking. It overrides '
            "reasoning_effort. Not in OpenAI's API."
        ),
    ] = None
    min_thinking: Annotated[
        int | None,
        Field(ge=0, description="Tokens before which thinking cannot end. Not in OpenAI's API."),
    ] = None
    keep_thinking: Annotated[
        bool | None,
        Field(
            description="False leaves the thinking of earlier turns out of the prompt. Not in "
            "OpenAI's API."
        ),
    ] = None
    image_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="The most tokens an image may take; larger ones are scaled down. Not in "
            "OpenAI's API.",
        ),
    ] = None
    regex: Annotated[
        str | None,
        Field(description="What the answer must match as a whole. Not in OpenAI's API."),
    ] = None
    choice: Annotated[
        Many[str] | None,
        Field(description="Texts of which the answer must be one. Not in OpenAI's API."),
    ] = None
    reasoning_format: Annotated[
        Literal["separate", "mistral"] | None,
        Field(
            description="Where the thinking goes: separate puts it in reasoning_content; mistral "
            "makes content a list of thinking and text chunks, as Mistral's API does, of which a "
            "stream sends the text as plain strings. Not in OpenAI's API."
        ),
    ] = None
    metadata: Annotated[Any, Field(description="Accepted and ignored.")] = None
    store: Annotated[bool | None, Field(description="Accepted and ignored.")] = None
