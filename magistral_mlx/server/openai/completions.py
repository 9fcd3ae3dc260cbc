"""POST /v1/completions"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from fastapi.responses import JSONResponse
from sse_starlette import ServerSentEvent

from magistral_mlx.api.options import Options
from magistral_mlx.chat.messages import RawPrompt
from magistral_mlx.events import Event
from magistral_mlx.server.documented import stream_response
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.json_body import JSONRoute
from magistral_mlx.server.openai.chat import ERRORS
from magistral_mlx.server.openai.chat_stream import DONE, error_event
from magistral_mlx.server.openai.completion_schemas import Completion, CompletionRequest
from magistral_mlx.server.openai.completion_writer import CompletionWriter, joined
from magistral_mlx.server.openai.figures import usage_of
from magistral_mlx.server.openai.sampling_schemas import sampling_options
from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.serving import Serving
from magistral_mlx.server.sse import data, stream_of

PATH = "/v1/completions"
_TOKENS = 16  # as in OpenAI's API
_MOST = 128  # completions of one request
_EXAMPLES: dict[str, Example] = {
    "text": {"summary": "Text to go on with", "value": {"prompt": "What is 37 + 85?"}},
    "several": {
        "summary": "Two prompts, streamed, with log probabilities",
        "value": {"prompt": ["1 + 1 =", "2 + 2 ="], "max_tokens": 4, "logprobs": 1, "stream": True},
    },
    "tokens": {"summary": "Token ids", "value": {"prompt": [1, 1049], "max_tokens": 4, "seed": 1}},
}

router = APIRouter(tags=["OpenAI"], responses=ERRORS, route_class=JSONRoute)


@router.post(
    PATH,
    summary="Go on with a text",
    response_model=Completion,
    responses={
        200: stream_response(
            Completion, "The completions; with `stream`, pieces and then [DONE]", done=True
        )
    },
)
async def completions(
    request: Request, body: Annotated[CompletionRequest, Body(openapi_examples=_EXAMPLES)]
) -> Response:
    """OpenAI's completions. Several prompts are completed one after the other."""
    job = _Job(request, body, await request.json())
    first = job.exchange(job.prompts[0])
    if body.stream:
        return await stream_of(first, lambda _: job.stream(first), grace=job.serving.settings.grace)
    async with first:
        writer = job.writer(first)
        pieces = [piece async for piece in job.pieces(first, writer)]
    whole = writer.chunk(joined(pieces), usage=usage_of(*writer.stats))
    return JSONResponse(whole.model_dump(exclude_unset=True))


class _Job:
    """One request: a prompt or several, each of which gets an exchange of its own."""

    def __init__(self, request: Request, body: CompletionRequest, raw: dict[str, Any]) -> None:
        """`raw` is the body as it came.

        Raises:
            BadRequest, InvalidOption: what the model cannot do, or what does not go together.
        """
        _check(body)
        self.serving: Serving = request.app.state.serving
        self.prompts = body.prompts
        self._request = request
        self._body = body
        self._raw = raw
        self._options = Options(
            max_tokens=body.max_tokens or _TOKENS,
            thinking="off",
            logprobs=body.logprobs is not None,
            top_logprobs=body.logprobs or 0,
            **sampling_options(body),
        ).seeded()

    def exchange(self, prompt: RawPrompt) -> Exchange:
        return self.serving.answer(
            self._request,
            self._body.model,
            prompt,
            self._options,
            endpoint=PATH,
            body=self._raw,
        )

    def writer(self, first: Exchange) -> CompletionWriter:
        seed = self._options.seed
        assert seed is not None
        return CompletionWriter(
            first, seed=seed, n=self._options.n, top_logprobs=self._body.logprobs
        )

    async def pieces(self, first: Exchange, writer: CompletionWriter) -> AsyncIterator[Completion]:
        """What all prompts become. The exchange of the first one has been entered."""
        async for piece in self._of_one(self.prompts[0], first, writer):
            yield piece
        for prompt in self.prompts[1:]:
            async with self.exchange(prompt) as events:
                async for piece in self._of_one(prompt, events, writer):
                    yield piece

    async def stream(self, first: Exchange) -> AsyncIterator[ServerSentEvent]:
        writer = self.writer(first)
        options = self._body.stream_options
        try:
            async for piece in self.pieces(first, writer):
                yield data(piece)
            if options and options.include_usage:
                yield data(writer.chunk([], usage=usage_of(*writer.stats)))
        except Exception as error:
            yield error_event(error)
        yield data(DONE)

    async def _of_one(
        self, prompt: RawPrompt, events: AsyncIterator[Event], writer: CompletionWriter
    ) -> AsyncIterator[Completion]:
        writer.begin(str(prompt.content) if self._body.echo else "")
        async for event in events:
            for piece in writer.chunks(event):
                yield piece


def _check(body: CompletionRequest) -> None:
    n = body.n or 1
    if body.suffix:
        raise BadRequest(
            "suffix is not supported: Magistral was not trained to fill in a middle. Leave it out.",
            param="suffix",
        )
    if body.best_of is not None and body.best_of != n:
        raise BadRequest(
            f"best_of is {body.best_of} and n is {n}: choosing among more answers than are told is "
            "not supported. Ask for n answers.",
            param="best_of",
        )
    if len(body.prompts) * n > _MOST:
        raise BadRequest(
            f"{len(body.prompts)} prompts with {n} completions each are more than {_MOST}.",
            param="prompt",
        )
    if not body.echo:
        return
    if not all(isinstance(prompt.content, str) for prompt in body.prompts):
        raise BadRequest("echo needs prompts of text, not of token ids.", param="echo")
    if body.logprobs is not None:
        raise BadRequest(
            "echo with logprobs is not supported: the prompt's own log probabilities are not "
            "computed. Leave one of them out.",
            param="echo",
        )
