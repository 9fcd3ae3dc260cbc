"""Mistral's dialect of chat completions: how it is recognised, its fields, addresses it lacks here.

Mistral's own clients send OpenAI's requests with a few fields more, and read answers that differ:
thinking as chunks of the content, a call whole in one delta, usage with the last chunk.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NoReturn

from fastapi import APIRouter
from pydantic import Field
from starlette.datastructures import Headers

from magistral_mlx.server.errors import BadRequest, NotFound
from magistral_mlx.server.request_body import RequestSchema

router = APIRouter()

_SIGNS = ("random_seed", "prompt_mode", "safe_prompt")  # fields of Mistral's API alone


class MistralFields(RequestSchema):
    """The fields of chat completions that Mistral's clients send."""

    random_seed: Annotated[int | None, Field(description="Mistral's name of seed.")] = None
    prompt_mode: Annotated[
        Literal["reasoning"] | None,
        Field(
            description="Mistral's field: reasoning puts the model's own request to think before "
            "the system prompt."
        ),
    ] = None
    safe_prompt: Annotated[bool | None, Field(description="Mistral's field. Refused if true.")] = (
        None
    )
    guardrails: Annotated[Any, Field(description="Mistral's field. Refused.")] = None
    prompt_logprobs: Annotated[
        bool | int | None, Field(description="Mistral's field. Refused: /v1/completions has echo.")
    ] = None
    prediction: Annotated[
        Any, Field(description="Accepted and ignored: it changes no answer, only its speed.")
    ] = None


class DocumentURLPart(RequestSchema):
    """A file as a data URL, as Mistral's API takes it."""

    type: Literal["document_url"]
    document_url: str
    document_name: str | None = None


def check_mistral_fields(fields: MistralFields) -> None:
    """Refuse what an answer would otherwise lack in silence.

    Raises:
        BadRequest: a field that is not supported.
    """
    advice = {
        "safe_prompt": "Say in a system message what it should say.",
        "guardrails": "This server moderates nothing: leave it out.",
        "prompt_logprobs": "Leave it out.",
    }
    for name, what in advice.items():
        if getattr(fields, name):
            raise BadRequest(f"{name} is not supported. {what}", param=name)


def is_mistral_client(headers: Headers) -> bool:
    """Whether the request comes from one of Mistral's own clients."""
    return "mistral" in headers.get("user-agent", "").lower()


def speaks_mistral(headers: Headers, body: dict[str, Any]) -> bool:
    """Whether the client reads answers in Mistral's dialect.

    It does if it is one of Mistral's, sends a field that their API alone has, or hands back
    thinking as they do.
    """
    if is_mistral_client(headers) or any(name in body for name in _SIGNS):
        return True
    contents = (
        message.get("content")
        for message in body.get("messages", ())
        if message.get("role") == "assistant"
    )
    return any(
        isinstance(part, dict) and part.get("type") == "thinking"
        for content in contents
        if isinstance(content, list)
        for part in content
    )


def wants_whole_calls(headers: Headers) -> bool:
    """Whether the client cannot join a call from deltas, though nothing else tells its dialect.

    langchain-mistralai reads streams with httpx-sse, under httpx's own name, and joins nothing.
    A call whole in one delta is right for every client, so a wrong guess breaks none.
    """
    return (
        headers.get("user-agent", "").startswith("python-httpx/")
        and headers.get("accept") == "text/event-stream"
        and headers.get("cache-control") == "no-store"
    )


def _refuse(path: str, message: str) -> None:
    @router.post(path, include_in_schema=False, response_model=None)
    async def refuse() -> NoReturn:
        raise NotFound(message)


_refuse(
    "/v1/fim/completions",
    "this model does not fill in the middle: it was not trained to. Ask in a chat at "
    "/v1/chat/completions, or continue a text at /v1/completions.",
)
_refuse(
    "/v1/agents/completions",
    "this server keeps no agents: send their instructions as a system message to "
    "/v1/chat/completions.",
)
