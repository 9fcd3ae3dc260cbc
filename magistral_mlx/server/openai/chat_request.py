"""A request for a chat completion as messages and options of ours."""

from __future__ import annotations

from typing import Any

from magistral_mlx.api.options import Options
from magistral_mlx.server.efforts import thinking_of
from magistral_mlx.server.functions import tool_options
from magistral_mlx.server.openai.chat_schemas import ChatRequest
from magistral_mlx.server.openai.message_schemas import message_dict
from magistral_mlx.server.openai.sampling_schemas import sampling_options
from magistral_mlx.server.openai.tool_schemas import (
    AllowedChoice,
    JSONFormat,
    NamedChoice,
    SchemaFormat,
)
from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.turns import left_open


def chat_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """The messages as `to_messages` reads them."""
    return left_open([message_dict(message) for message in request.messages])


def chat_options(request: ChatRequest) -> Options:
    """How to answer.

    Raises:
        InvalidOption, BadRequest: what does not go together, or is out of range.
    """
    thinking = request.thinking
    options = sampling_options(request) | {
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "thinking": thinking_of(request.reasoning_effort) if thinking is None else thinking,
        "ask_for_thinking": thinking is not None or request.reasoning_effort is not None,
        "min_thinking": request.min_thinking,
        "keep_thinking": request.keep_thinking,
        "image_tokens": request.image_tokens,
        "logprobs": request.logprobs,
        "top_logprobs": request.top_logprobs,
        "parallel_tool_calls": request.parallel_tool_calls,
    }
    options |= _tool_options(request)
    if options.get("tool_choice") != "required":  # then there is nothing but calls
        options |= _answer_options(request)
    options = {name: value for name, value in options.items() if value is not None}
    return Options(**options).seeded()


def _tool_options(request: ChatRequest) -> dict[str, Any]:
    functions = [tool.function for tool in request.tools or ()]
    match request.tool_choice:
        case NamedChoice(function=function):
            return tool_options(functions, "required", [function.name])
        case AllowedChoice(allowed_tools=allowed):
            names = [tool.function.name for tool in allowed.tools]
            return tool_options(functions, allowed.mode, names)
        case "required" | "any":
            return tool_options(functions, "required")
        case "none":
            return tool_options(functions, "none")
    return tool_options(functions, "auto")


def _answer_options(request: ChatRequest) -> dict[str, Any]:
    schema: Any = None
    match request.response_format:
        case JSONFormat():
            schema = {"type": "object"}
        case SchemaFormat(json_schema=named):
            if named.schema_ is None:
                raise BadRequest(
                    "response_format.json_schema.schema is missing: it holds the schema.",
                    param="response_format",
                )
            schema = named.schema_
    return {"json_schema": schema, "regex": request.regex, "choice": request.choice}
