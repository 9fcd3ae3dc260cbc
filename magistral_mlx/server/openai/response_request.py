"""Translation of requests for responses into messages and options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from magistral_mlx.api.options import Options
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.openai.chat_schemas import JSONFormat
from magistral_mlx.server.openai.response_schemas import (
    AllowedTools,
    FunctionCallItem,
    FunctionChoice,
    FunctionOutputItem,
    InputImage,
    InputMessage,
    InputText,
    Item,
    ReasoningItem,
    ResponseRefusal,
    ResponseRequest,
    ResponseSchemaFormat,
)
from magistral_mlx.server.option_values import seed_option, top_p_option
from magistral_mlx.server.request_translation import (
    MessageBuilder,
    Part,
    continue_last,
    image_part,
    text_part,
    thinking_of,
    tool_options,
)

LOGPROBS = "message.output_text.logprobs"


def input_items(request: ResponseRequest) -> list[Item]:
    """The items that the request adds to the conversation."""
    if isinstance(request.input, str):
        return [InputMessage(role="user", content=request.input)]
    return request.input


def response_messages(items: Sequence[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The conversation as dicts for `to_messages`."""
    builder = MessageBuilder()
    if instructions:
        builder.system(instructions)
    for item in items:
        match item:
            case InputMessage():
                _add_message(builder, item)
            case ReasoningItem():
                builder.thinking("".join(part.text for part in item.content or item.summary or ()))
            case FunctionCallItem():
                builder.call(item.name, item.arguments, item.call_id)
            case FunctionOutputItem():
                builder.result(_parts(item.output), item.call_id)
    return continue_last(builder.messages())


def response_options(request: ResponseRequest) -> Options:
    """The options of a request.

    Raises:
        InvalidOption, BadRequest: values that are unsupported, out of range, or exclude each other.
    """
    _check_unsupported(request)
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
    } | _tool_options(request)
    if options.get("tool_choice") != "required":
        options["json_schema"] = _schema(request)
    return Options(**{name: value for name, value in options.items() if value is not None}).seeded()


def _add_message(builder: MessageBuilder, message: InputMessage) -> None:
    content = message.content
    if message.role == "user":
        builder.user(content if isinstance(content, str) else _parts(content))
    elif message.role == "assistant":
        builder.text("".join(part.get("text", "") for part in _parts(content)))
    else:
        builder.system(content if isinstance(content, str) else _parts(content))


def _parts(content: str | Sequence[InputText | InputImage | ResponseRefusal]) -> list[Part]:
    if isinstance(content, str):
        return [text_part(content)]
    return [_part(part) for part in content]


def _part(part: InputText | InputImage | ResponseRefusal) -> Part:
    match part:
        case InputImage():
            return image_part(part.image_url)
        case ResponseRefusal():
            return text_part(part.refusal)
        case _:
            return text_part(part.text)


def _check_unsupported(request: ResponseRequest) -> None:
    if request.background:
        raise BadRequest(
            "background is not supported: wait for the response, or stream it.", param="background"
        )
    if request.conversation is not None:
        raise BadRequest(
            "conversation is not supported: name the response before as previous_response_id.",
            param="conversation",
        )


def _tool_options(request: ResponseRequest) -> dict[str, Any]:
    match request.tool_choice:
        case FunctionChoice(name=name):
            return tool_options(request.tools, "required", [name])
        case AllowedTools(mode=mode, tools=allowed):
            return tool_options(request.tools, mode, [tool.name for tool in allowed])
        case "none" | "required":
            return tool_options(request.tools, request.tool_choice)
    return tool_options(request.tools, "auto")


def _schema(request: ResponseRequest) -> dict[str, Any] | None:
    match request.text.format if request.text else None:
        case JSONFormat():
            return {"type": "object"}
        case ResponseSchemaFormat(schema_=schema):
            return schema
    return None
