"""Translation of requests for responses into messages and options."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from magistral_mlx.api.options import Options
from magistral_mlx.server.document_parts import document_parts
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.openai.chat_schemas import JSONFormat
from magistral_mlx.server.openai.response_items import (
    CallOutputItem,
    CompactionItem,
    CustomCallItem,
    FunctionCallItem,
    InputFile,
    InputImage,
    InputMessage,
    InputText,
    Item,
    LocalShellCallItem,
    ReasoningItem,
    ResponseRefusal,
    SkippedItem,
)
from magistral_mlx.server.openai.response_schemas import ResponseRequest, ResponseSchemaFormat
from magistral_mlx.server.openai.response_tools import (
    LOCAL_SHELL,
    ResponseTools,
    custom_arguments,
    function_name,
)
from magistral_mlx.server.openai.structure_fields import ANY_OBJECT
from magistral_mlx.server.option_values import seed_option, top_p_option
from magistral_mlx.server.request_translation import (
    MessageBuilder,
    Part,
    continue_last,
    image_part,
    text_part,
    thinking_of,
    with_form,
)

LOGPROBS = "message.output_text.logprobs"
ENCRYPTED = "reasoning.encrypted_content"
_ENCODED = "magistral-mlx:"  # before the base64 of a text
_SHELL_FIELDS = ("command", "working_directory", "timeout_ms")


def input_items(request: ResponseRequest) -> list[Item]:
    """The items that the request adds to the conversation."""
    if isinstance(request.input, str):
        return [InputMessage(role="user", content=request.input)]
    return request.input or []


def response_messages(
    items: Sequence[Item], instructions: str | None, stored: int = 0
) -> list[dict[str, Any]]:
    """The conversation as dicts for `to_messages`.

    Args:
        stored: how many of the items, the first ones, are not of the request's input.
    """
    builder = MessageBuilder()
    if instructions:
        builder.system(instructions)
    for n, item in enumerate(items):
        where = f"conversation.items[{n}]" if n < stored else f"input[{n - stored}]"
        match item:
            case InputMessage():
                _add_message(builder, item, f"{where}.content")
            case ReasoningItem():
                builder.thinking(_thinking(item))
            case FunctionCallItem():
                name = function_name(item.name, item.namespace)
                builder.call(name, item.arguments, item.call_id)
            case CustomCallItem():
                name = function_name(item.name, item.namespace)
                builder.call(name, custom_arguments(item.input), item.call_id)
            case LocalShellCallItem():
                action = {
                    name: item.action[name] for name in _SHELL_FIELDS if item.action.get(name)
                }
                builder.call(LOCAL_SHELL, action, item.call_id or item.id)
            case CallOutputItem():
                output = _parts(item.output, f"{where}.output")
                builder.result(output, item.call_id or item.id)
            case CompactionItem():
                summary = _decoded(item.encrypted_content)
                if summary is not None:
                    builder.user(f"Summary of the conversation so far:\n\n{summary}")
            case SkippedItem():
                pass
    return continue_last(builder.messages())


def encode_text(text: str) -> str:
    """Text as `encrypted_content`, for clients that send it back and keep nothing else."""
    return _ENCODED + base64.b64encode(text.encode("utf-8", "replace")).decode()


def _decoded(content: str | None) -> str | None:
    """The text that `encode_text` encoded; None for what it has not."""
    if content is None or not content.startswith(_ENCODED):
        return None
    try:
        return base64.b64decode(content.removeprefix(_ENCODED), validate=True).decode()
    except ValueError:
        return None  # changed on its way


def _thinking(item: ReasoningItem) -> str:
    text = _decoded(item.encrypted_content)
    if text is not None:
        return text
    return "".join(part.text for part in item.content or item.summary or ())


def response_options(request: ResponseRequest) -> Options:
    """The options of a request.

    Raises:
        InvalidOption, BadRequest: values that are unsupported, out of range, or exclude each other.
    """
    check_unsupported(request)
    effort = request.reasoning.effort if request.reasoning else None
    options = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": top_p_option(request.top_p),
        "seed": seed_option(request.seed),
        "thinking": thinking_of(effort) if request.thinking is None else request.thinking,
        "ask_for_thinking": request.thinking is not None or effort is not None,
        "logprobs": LOGPROBS in (request.include or ()),
        "top_logprobs": request.top_logprobs,
        "parallel_tool_calls": request.parallel_tool_calls,
        "overflow": "drop" if request.truncation == "auto" else "error",
    } | ResponseTools(request.tools).options(request)
    options = with_form(options, {"json_schema": _schema(request)})
    return Options(**{name: value for name, value in options.items() if value is not None}).seeded()


def _add_message(builder: MessageBuilder, message: InputMessage, where: str) -> None:
    content = message.content
    if message.role == "user":
        builder.user(content if isinstance(content, str) else _parts(content, where))
    elif message.role == "assistant":
        builder.text("".join(part.get("text", "") for part in _parts(content, where)))
    else:
        parts = _parts(content, where)
        if any(part["type"] != "text" for part in parts):
            raise BadRequest(
                f"{where} holds an image, which has its place in a user's message.", param=where
            )
        builder.system(content if isinstance(content, str) else parts)


_Shown = InputText | InputImage | InputFile | ResponseRefusal


def _parts(content: str | Sequence[_Shown], where: str) -> list[Part]:
    if isinstance(content, str):
        return [text_part(content)]
    return [part for n, each in enumerate(content) for part in _parts_of(each, f"{where}[{n}]")]


def _parts_of(part: _Shown, where: str) -> list[Part]:
    match part:
        case InputImage():
            return [image_part(part.image_url, f"{where}.image_url")]
        case InputFile():
            name = part.filename or "file"
            return document_parts(part.file_data, name, where=f"{where}.file_data")
        case ResponseRefusal():
            return [text_part(part.refusal)]
        case _:
            return [text_part(part.text)]


def check_unsupported(request: ResponseRequest) -> None:
    """Check that the request asks for nothing that this server lacks.

    Raises:
        BadRequest: it does, or names two conversations.
    """
    if request.prompt is not None:
        raise BadRequest(
            "prompt is not supported: this server keeps no prompts of yours. Send what it says as "
            "instructions and input.",
            param="prompt",
        )
    if request.background:
        raise BadRequest(
            "background is not supported: wait for the response, or stream it.", param="background"
        )
    if request.conversation is not None and request.previous_response_id is not None:
        raise BadRequest(
            "conversation and previous_response_id exclude each other: give one.",
            param="conversation",
        )


def _schema(request: ResponseRequest) -> dict[str, Any] | None:
    match request.text.format if request.text else None:
        case JSONFormat(schema_=schema):
            return ANY_OBJECT if schema is None else schema
        case ResponseSchemaFormat(schema_=schema):
            return schema
    return None
