"""POST /v1/messages and /v1/messages/count_tokens: endpoints, and translation of their requests."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.responses import JSONResponse

from magistral_mlx.api.options import Options, ThinkingOption
from magistral_mlx.server.anthropic.content import add_message, parts_of
from magistral_mlx.server.anthropic.message_format import MessageFormatter
from magistral_mlx.server.anthropic.response_schemas import (
    AnthropicMessage,
    MessageEvent,
    TokenCount,
)
from magistral_mlx.server.anthropic.schemas import (
    CountRequest,
    HostedMessageTool,
    MessageRequest,
    MessageTool,
    TextBlock,
    ThinkingDisabled,
    ThinkingEnabled,
)
from magistral_mlx.server.blocks import read_samples
from magistral_mlx.server.error_responses import ANTHROPIC_RESPONSES, AnthropicError, ErrorResponse
from magistral_mlx.server.errors import BadRequest, ThreadUnsupported
from magistral_mlx.server.openapi import error_responses, stream_response
from magistral_mlx.server.openapi_examples import COUNT_EXAMPLES, MESSAGE_EXAMPLES
from magistral_mlx.server.option_values import seed_option, stop_option, top_p_option
from magistral_mlx.server.request_body import JSONRoute
from magistral_mlx.server.request_translation import (
    FunctionSchema,
    MessageBuilder,
    Part,
    ToolChoiceMode,
    continue_last,
    own_names,
    thinking_of,
    tool_options,
    with_form,
)
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.sse import stream_of

PATH = "/v1/messages"
# Claude Code's first block of the system prompt. It instructs nobody, and may differ from one
# request to the next, so that no prefix of the prompt would stay.
_BILLING = "x-anthropic-billing-header:"

router = APIRouter(
    tags=["Anthropic"],
    responses=error_responses(
        AnthropicError, 400, 401, 403, 404, 413, 429, 500, 503, rest=ANTHROPIC_RESPONSES
    ),
    route_class=JSONRoute,
)


@router.post(
    PATH,
    summary="Answer a conversation, as Anthropic's API does",
    response_model=AnthropicMessage,
    responses={200: stream_response(MessageEvent, "The message; with `stream`, its events")},
)
async def messages(
    request: Request, body: Annotated[MessageRequest, Body(openapi_examples=MESSAGE_EXAMPLES)]
) -> Response:
    """Anthropic's messages, with images, thinking blocks and tools.

    As there, the model thinks only where `thinking` says so. During a long prefill a stream
    sends pings.
    """
    service: GenerationService = request.app.state.service
    names = own_names(_functions(body))
    exchange = service.answer(
        request,
        body.model,
        await asyncio.to_thread(conversation, body),
        message_options(body),
        endpoint=PATH,
        body=await request.json(),
    )

    def formatter() -> MessageFormatter:
        context = service.registry.info(exchange.model).context  # certain once it is entered
        return MessageFormatter(exchange.model, context, names)

    if body.stream:
        return await stream_of(
            exchange,
            lambda events: formatter().stream(events),
            fail=error_events,
            grace=service.settings.grace,
            ping=MessageEvent(type="ping"),
        )
    async with exchange as events:
        [sample] = await read_samples(events, names)
    return JSONResponse(formatter().whole(sample).model_dump(exclude_unset=True))


@router.post(PATH + "/count_tokens", summary="Count the tokens of a conversation")
async def count_tokens(
    request: Request, body: Annotated[CountRequest, Body(openapi_examples=COUNT_EXAMPLES)]
) -> TokenCount:
    """Tokens of the prompt, images and tools included. The model need not be loaded for it."""
    service: GenerationService = request.app.state.service
    messages = await asyncio.to_thread(conversation, body)
    tokens = await service.count(request, body.model, messages, message_options(body))
    return TokenCount(input_tokens=tokens)


def error_events(error: ErrorResponse) -> list[MessageEvent]:
    """The event of an error within a stream, which Anthropic's clients raise."""
    return [MessageEvent(**error.anthropic())]


def conversation(request: CountRequest) -> list[dict[str, Any]]:
    """The system prompt and the messages as dicts for `to_messages`.

    Raises:
        BadRequest: a block in a message of the wrong role.
        ThreadUnsupported: a message of a thread, whose other messages are not here.
    """
    if request.thread is not None:
        raise ThreadUnsupported(
            "thread is not supported: this server keeps no threads. Send all messages.",
            param="thread",
        )
    builder = MessageBuilder()
    if system := _system(request.system):
        builder.system(system)
    for n, message in enumerate(request.messages):
        add_message(builder, message, f"messages[{n}]")
    return continue_last(builder.messages())


def _system(given: str | list[TextBlock] | None) -> str | list[Part]:
    """The system prompt without what instructs nobody; empty for none."""
    if given is None or isinstance(given, str):
        return given or ""
    said = [block for block in given if not block.text.startswith(_BILLING)]
    return parts_of(said, "system")


def message_options(request: CountRequest) -> Options:
    """The options that shape the prompt, and for a message those of the answer.

    Raises:
        InvalidOption, BadRequest: values that are out of range or exclude each other.
    """
    choice = request.tool_choice
    options: dict[str, Any] = _tool_options(request) | {
        "thinking": _thinking(request),
        "ask_for_thinking": True,  # as clients always send a system prompt
        "image_tokens": request.image_tokens,
        "parallel_tool_calls": not (choice and choice.disable_parallel_tool_use),
    }
    options = with_form(options, {"json_schema": _schema(request)})
    if isinstance(request, MessageRequest):
        options |= {
            "max_tokens": request.max_tokens,
            "stop": stop_option(request.stop_sequences),
            "temperature": request.temperature,
            "top_p": top_p_option(request.top_p),
            "top_k": request.top_k,
            "seed": seed_option(request.seed),
        }
    return Options(**{name: value for name, value in options.items() if value is not None}).seeded()


def _schema(request: CountRequest) -> dict[str, Any] | None:
    named = request.output_config.format if request.output_config else None
    if named and request.output_format and named != request.output_format:
        raise BadRequest(
            "output_format and output_config.format exclude each other: give one.",
            param="output_format",
        )
    wanted = named or request.output_format
    return wanted.schema_ if wanted else None


def _thinking(request: CountRequest) -> ThinkingOption:
    effort = request.output_config.effort if request.output_config else None
    match request.thinking:
        case None | ThinkingDisabled():
            return "off"
        case ThinkingEnabled(budget_tokens=budget):
            return budget
        case _:
            return thinking_of(effort)


def _tool_options(request: CountRequest) -> dict[str, Any]:
    functions = _functions(request)
    chosen = request.tool_choice
    if chosen and chosen.type == "tool":
        if chosen.name is None:
            raise BadRequest("tool_choice.name is missing: it names the tool.", param="tool_choice")
        if any(
            isinstance(t, HostedMessageTool) and t.name == chosen.name for t in request.tools or ()
        ):
            raise BadRequest(
                f"tool_choice asks for {chosen.name[:100]!r}, which this server does not run. "
                "Choose a tool with an input_schema.",
                param="tool_choice",
            )
        return tool_options(functions, "required", [chosen.name])
    names: dict[str, ToolChoiceMode] = {"any": "required", "none": "none"}
    return tool_options(functions, names.get(chosen.type, "auto") if chosen else "auto")


def _functions(request: CountRequest) -> list[FunctionSchema]:
    """The tools that the model is told of, without those that the vendor runs."""
    return [
        FunctionSchema(
            name=tool.name,
            description=tool.description,
            parameters=tool.input_schema,
            strict=tool.strict,
        )
        for tool in request.tools or ()
        if isinstance(tool, MessageTool)
    ]
