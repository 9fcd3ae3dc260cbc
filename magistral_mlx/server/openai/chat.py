"""POST /v1/chat/completions: the endpoint, and the translation of its requests."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from magistral_mlx.api.options import Options
from magistral_mlx.server.blocks import read_samples
from magistral_mlx.server.document_parts import document_parts
from magistral_mlx.server.error_responses import OPENAI_RESPONSES, ErrorResponse, OpenAIError
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.openai.chat_format import ChatFormatter
from magistral_mlx.server.openai.chat_response_schemas import ChatChunk, ChatCompletion
from magistral_mlx.server.openai.chat_schemas import (
    AllowedToolsChoice,
    ChatMessage,
    ChatRequest,
    JSONFormat,
    NamedToolChoice,
    SchemaFormat,
)
from magistral_mlx.server.openai.mistral import (
    check_mistral_fields,
    speaks_mistral,
    wants_whole_calls,
)
from magistral_mlx.server.openai.sampling_schemas import sampling_options
from magistral_mlx.server.openai.structure_fields import ANY_OBJECT, structure_options
from magistral_mlx.server.openai.thinking_fields import thinking_options
from magistral_mlx.server.openapi import error_responses, stream_response
from magistral_mlx.server.openapi_examples import CHAT_EXAMPLES
from magistral_mlx.server.option_values import seed_option
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.request_translation import (
    MessageBuilder,
    Part,
    continue_last,
    image_part,
    own_names,
    text_part,
    tool_options,
    with_form,
)
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.sse import stream_of

PATH = "/v1/chat/completions"
ERRORS = error_responses(OpenAIError, 400, 401, 403, 404, 413, 429, 500, 503, rest=OPENAI_RESPONSES)

DONE = "[DONE]"  # data of a stream's last event

router = APIRouter(tags=["OpenAI"], responses=ERRORS, route_class=JSONRoute)


@router.post(
    PATH,
    summary="Answer a conversation",
    response_model=ChatCompletion,
    responses={
        200: stream_response(
            ChatChunk, "The answers; with `stream`, chunks and then [DONE]", done=True
        )
    },
)
async def chat_completions(
    request: Request, body: Annotated[ChatRequest, Body(openapi_examples=CHAT_EXAMPLES)]
) -> Response:
    """OpenAI's chat completions, with images, thinking, tools and structured output.

    The thinking is separate from the content, in `reasoning_content`. During a long prefill a
    stream sends chunks with an empty delta and `progress`, and a comment every ten seconds.
    """
    service: GenerationService = request.app.state.service
    options = chat_options(body)
    sent = await request.json()
    mistral = body.reasoning_format == "mistral" or (
        body.reasoning_format is None and speaks_mistral(request.headers, sent)
    )
    names = own_names(tool.function for tool in body.tools or ())
    exchange = service.answer(
        request,
        body.model,
        await asyncio.to_thread(chat_messages, body),
        options,
        endpoint=PATH,
        body=sent,
    )

    def formatter() -> ChatFormatter:
        return ChatFormatter(
            exchange.model,
            exchange.created,
            exchange.seed,
            logprobs=bool(body.logprobs or body.top_logprobs),
            prompt_ids=exchange.prompt_token_ids if body.return_token_ids else None,
            mistral=mistral,
            thinking=body.shows_thinking,
            whole_calls=mistral or wants_whole_calls(request.headers),
            names=names,
            usage=bool(body.stream_options and body.stream_options.include_usage),
        )

    if body.stream:
        return await stream_of(
            exchange,
            lambda events: formatter().stream(events),
            fail=error_events,
            grace=service.settings.grace,
            done=DONE,
        )
    async with exchange as events:
        samples = await read_samples(events, names)
    return JSONResponse(formatter().whole(samples).model_dump(exclude_unset=True))


def error_events(error: ErrorResponse) -> list[BaseModel]:
    """The event of an error within a stream, which OpenAI's clients raise."""
    return [OpenAIError(**error.openai())]


def chat_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages as dicts for `to_messages`."""
    builder = MessageBuilder()
    for n, message in enumerate(request.messages):
        builder.add(_message_dict(message, f"messages[{n}]"))
    return continue_last(builder.messages())


def _message_dict(message: ChatMessage, where: str) -> dict[str, Any]:
    """The message as a dict for `to_messages`; `where` names it in errors.

    Raises:
        BadRequest, DocumentError, ImageError: a file that cannot be read.
    """
    found = message.model_dump(exclude_none=True)
    if old_call := found.pop("function_call", None):
        found["tool_calls"] = [*found.get("tool_calls", ()), {"function": old_call}]
    content = found.get("content")
    if isinstance(content, list):
        found["content"] = [
            each
            for n, part in enumerate(content)
            for each in _readable(part, f"{where}.content[{n}]")
        ]
    return found


def _readable(part: dict[str, Any], where: str) -> list[Part]:
    match part:
        case {"type": "refusal", "refusal": text}:
            return [text_part(text)]
        case {"type": "file", "file": file}:
            name = file.get("filename") or "file"
            return document_parts(file["file_data"], name, where=f"{where}.file.file_data")
        case {"type": "document_url", "document_url": url}:
            name = part.get("document_name") or "document"
            return document_parts(url, name, where=f"{where}.document_url")
        case {"type": "image_url", "image_url": {"url": url}}:
            return [image_part(url, f"{where}.image_url.url")]
        case {"type": "image_url", "image_url": url}:
            return [image_part(url, f"{where}.image_url")]
    return [part]


def chat_options(request: ChatRequest) -> Options:
    """The options of a request.

    Raises:
        InvalidOption, BadRequest: values that are out of range or exclude each other.
    """
    _check_legacy(request)
    check_mistral_fields(request)
    options = (
        sampling_options(request)
        | thinking_options(request)
        | {
            "max_tokens": request.max_completion_tokens or request.max_tokens,
            "min_thinking": request.min_thinking,
            "keep_thinking": request.keep_thinking,
            "image_tokens": request.image_tokens,
            "logprobs": request.logprobs or request.return_token_ids,  # which tell the tokens
            "top_logprobs": request.top_logprobs,
            "parallel_tool_calls": request.parallel_tool_calls,
        }
    )
    if request.seed is None:
        options["seed"] = seed_option(request.random_seed)
    if request.prompt_mode == "reasoning":
        options["ask_for_thinking"] = True
    options = with_form(options | _tool_options(request), _answer_options(request))
    options = {name: value for name, value in options.items() if value is not None}
    return Options(**options).seeded()


def _check_legacy(request: ChatRequest) -> None:
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):
        if getattr(request, old) is not None:
            raise BadRequest(f"{old} is not supported: it is the old name of {new}.", param=old)


def _tool_options(request: ChatRequest) -> dict[str, Any]:
    functions = [tool.function for tool in request.tools or ()]
    match request.tool_choice:
        case NamedToolChoice(function=function):
            return tool_options(functions, "required", [function.name])
        case AllowedToolsChoice(allowed_tools=allowed):
            names = [tool.function.name for tool in allowed.tools]
            return tool_options(functions, allowed.mode, names)
        case "required" | "any":
            return tool_options(functions, "required")
        case "none":
            return tool_options(functions, "none")
    return tool_options(functions, "auto")


def _answer_options(request: ChatRequest) -> dict[str, Any]:
    schema: dict[str, Any] | None = None
    match request.response_format:
        case JSONFormat(schema_=given):
            schema = ANY_OBJECT if given is None else given
        case SchemaFormat(json_schema=named):
            if named.schema_ is None:
                raise BadRequest(
                    "response_format.json_schema.schema is missing: it holds the schema.",
                    param="response_format",
                )
            schema = named.schema_
    return structure_options(request, schema)
