"""POST /v1/completions"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from magistral_mlx.api.options import Options
from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.server.blocks import read_samples
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.openai.chat import DONE, ERRORS, error_events
from magistral_mlx.server.openai.completion_format import CompletionFormatter
from magistral_mlx.server.openai.completion_schemas import (
    Completion,
    CompletionChoice,
    CompletionRequest,
)
from magistral_mlx.server.openai.sampling_schemas import sampling_options
from magistral_mlx.server.openai.structure_fields import structure_options
from magistral_mlx.server.openai.usage import usage_of
from magistral_mlx.server.openapi import stream_response
from magistral_mlx.server.openapi_examples import COMPLETION_EXAMPLES
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.shared_fields import server_timings_of
from magistral_mlx.server.sse import stream_of

PATH = "/v1/completions"
_TOKENS = 16  # as in OpenAI's API
_MOST = 128  # completions of one request

router = APIRouter(tags=["OpenAI"], responses=ERRORS, route_class=JSONRoute)


@router.post(
    PATH,
    summary="Continue a text",
    response_model=Completion,
    responses={
        200: stream_response(
            Completion, "The completions; with `stream`, pieces and then [DONE]", done=True
        )
    },
)
async def completions(
    request: Request, body: Annotated[CompletionRequest, Body(openapi_examples=COMPLETION_EXAMPLES)]
) -> Response:
    """OpenAI's completions. Several prompts are completed one after the other."""
    completing = _CompletionJob(request, body, await request.json())
    first = completing.exchange(completing.prompts[0])
    if body.stream:
        return await stream_of(
            first,
            lambda _: completing.stream(first),
            fail=error_events,
            grace=completing.service.settings.grace,
            done=DONE,
        )
    async with first:
        whole = await completing.whole(first)
    return JSONResponse(whole.model_dump(exclude_unset=True))


class _CompletionJob:
    """One request: a prompt or several, each of which gets an exchange of its own."""

    def __init__(self, request: Request, body: CompletionRequest, raw: dict[str, Any]) -> None:
        """`raw` is the body as received.

        Raises:
            BadRequest, InvalidOption: unsupported values, or values that exclude each other.
        """
        _check(body)
        self.service: GenerationService = request.app.state.service
        self.prompts = body.prompts
        self._request = request
        self._body = body
        self._raw = raw
        scores = bool(body.echo) and body.logprobs is not None
        self._options = Options(
            max_tokens=_TOKENS if body.max_tokens is None else body.max_tokens,
            thinking="off",
            logprobs=body.logprobs is not None or bool(body.return_token_ids),
            top_logprobs=body.logprobs or 0,
            prompt_logprobs=(body.logprobs or 0) if scores or body.max_tokens == 0 else None,
            **sampling_options(body),
            **structure_options(body),
        ).seeded()

    def exchange(self, prompt: RawPrompt) -> Exchange:
        """The exchange of one prompt, to be entered."""
        return self.service.answer(
            self._request,
            self._body.model,
            prompt,
            self._options,
            endpoint=PATH,
            body=self._raw,
        )

    async def stream(self, first: Exchange) -> AsyncIterator[Completion]:
        """All pieces of all prompts. The exchange of the first one has been entered."""
        formatter = self._formatter(first)
        async for prompt, exchange in self._exchanges(first):
            self._start(formatter, prompt, exchange)
            async for piece in formatter.stream(exchange):
                yield piece
        if self._body.stream_options and self._body.stream_options.include_usage:
            yield formatter.usage()

    async def whole(self, first: Exchange) -> Completion:
        """The completions of all prompts. The exchange of the first one has been entered."""
        formatter = self._formatter(first)
        choices: list[CompletionChoice] = []
        async for prompt, exchange in self._exchanges(first):
            self._start(formatter, prompt, exchange)
            choices += formatter.whole(await read_samples(exchange))
        return formatter.completion(
            choices,
            usage=usage_of(*formatter.stats),
            timings=server_timings_of(formatter.stats[-1][-1]),
        )

    async def _exchanges(self, first: Exchange) -> AsyncIterator[tuple[RawPrompt, Exchange]]:
        yield self.prompts[0], first
        for prompt in self.prompts[1:]:
            async with self.exchange(prompt) as exchange:
                yield prompt, exchange

    def _start(self, formatter: CompletionFormatter, prompt: RawPrompt, exchange: Exchange) -> None:
        ids = exchange.prompt_token_ids if self._body.return_token_ids else None
        formatter.start_prompt(self._echo(prompt), ids)

    def _echo(self, prompt: RawPrompt) -> str:
        if not self._body.echo:
            return ""
        if isinstance(prompt.content, str):
            return prompt.content
        tokenizer = self.service.registry.find(self._body.model).tokenizer
        return tokenizer.decode(prompt.content)

    def _formatter(self, first: Exchange) -> CompletionFormatter:
        return CompletionFormatter(
            first.model,
            first.created,
            first.seed,
            n=self._options.n,
            top_logprobs=self._body.logprobs,
            echo=bool(self._body.echo),
        )


def _check(body: CompletionRequest) -> None:
    n = body.n or 1
    if body.suffix:
        raise BadRequest(
            "suffix is not supported: Magistral was not trained to fill in a middle. Leave it out.",
            param="suffix",
        )
    if body.best_of is not None and body.best_of != n:
        raise BadRequest(
            f"best_of is {body.best_of} and n is {n}: choosing among more answers is "
            "not supported. Ask for n answers.",
            param="best_of",
        )
    if len(body.prompts) * n > _MOST:
        raise BadRequest(
            f"{len(body.prompts)} prompts with {n} completions each are more than {_MOST}.",
            param="prompt",
        )
    if body.max_tokens == 0 and not body.echo:
        raise BadRequest(
            "max_tokens is 0, which leaves nothing to return. Ask for 1 or more, or for echo.",
            param="max_tokens",
        )
