"""Inspect's messages, tools and outputs, and ours."""

from __future__ import annotations

import json
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    Content,
    ContentImage,
    ContentReasoning,
    ContentText,
    Logprob,
    Logprobs,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
)
from inspect_ai.tool import ToolCall as InspectCall
from inspect_ai.tool import ToolInfo

from magistral_mlx.api.image_inputs import open_image
from magistral_mlx.chat.messages import Assistant, Image, Message, System, Tool, ToolResult, User
from magistral_mlx.errors import PromptError
from magistral_mlx.events import TokenLogprob, ToolCall
from magistral_mlx.runtime.result import Result

_STOPS: dict[str | None, StopReason] = {"stop": "stop", "length": "max_tokens"}


def to_message(message: ChatMessage) -> Message:
    """Return one of Inspect's messages as one of ours.

    Raises:
        PromptError: content that the model cannot take, such as audio.
        ImageError: an image that cannot be opened.
    """
    match message:
        case ChatMessageSystem():
            return System(_text(message))
        case ChatMessageUser():
            content = message.content
            if isinstance(content, str):
                return User(content)
            return User(tuple(_user_part(part) for part in content))
        case ChatMessageAssistant():
            return _assistant(message)
        case ChatMessageTool():
            text = f"{message.error.type}: {message.error.message}" if message.error else ""
            return ToolResult(text or _text(message), message.tool_call_id)


def to_tool(tool: ToolInfo) -> Tool:
    """Return one of Inspect's tools as one of ours."""
    parameters = tool.parameters.model_dump(exclude_none=True, by_alias=True)
    return Tool(tool.name, tool.description, parameters)


def to_output(result: Result, model: str) -> ModelOutput:
    """Return an answer, or all samples of one, as Inspect's output.

    Its metadata tells what Inspect has no field for: the seed, and what ended the thinking.
    """
    samples = result.samples or (result,)
    usage = result.usage
    thinking = sum(sample.usage.thinking_tokens for sample in samples)
    completion = sum(sample.usage.completion_tokens for sample in samples)
    stats = result.stats
    return ModelOutput(
        model=model,
        choices=[_choice(sample, model) for sample in samples],
        usage=ModelUsage(
            input_tokens=usage.prompt_tokens - stats.cached_tokens,
            input_tokens_cache_read=stats.cached_tokens or None,
            output_tokens=completion,
            reasoning_tokens=thinking,
            total_tokens=usage.prompt_tokens + completion,
        ),
        time=stats.prefill_seconds + stats.decode_seconds,
        metadata={"seed": result.seed, "thinking_end": stats.thinking_end},
    )


def _assistant(message: ChatMessageAssistant) -> Assistant:
    parts = message.content if isinstance(message.content, list) else []
    thoughts = [part.reasoning for part in parts if isinstance(part, ContentReasoning)]
    calls = tuple(
        ToolCall(call.function, json.dumps(call.arguments, ensure_ascii=False), call.id)
        for call in message.tool_calls or ()
    )
    return Assistant(message.text, "".join(thoughts) if thoughts else None, calls)


def _user_part(part: Content) -> str | Image:
    if isinstance(part, ContentText):
        return part.text
    if isinstance(part, ContentImage):
        return open_image(part.image)
    raise _unreadable(part)


def _text(message: ChatMessageSystem | ChatMessageTool) -> str:
    if isinstance(message.content, list):
        for part in message.content:
            if not isinstance(part, ContentText):
                raise _unreadable(part)
    return message.text


def _unreadable(part: Content) -> PromptError:
    return PromptError(
        f"a message holds content of type {part.type}; the model reads text, and images in a "
        "user's message."
    )


def _choice(result: Result, model: str) -> ChatCompletionChoice:
    text = result.text + "".join(call.text for call in result.malformed_calls)
    content: list[Content] = []
    if result.thinking:
        content.append(ContentReasoning(reasoning=result.thinking))
    if text or not content:
        content.append(ContentText(text=text))
    calls = [_call(call) for call in result.tool_calls]
    reason = _STOPS.get(result.finish_reason, "unknown")
    return ChatCompletionChoice(
        message=ChatMessageAssistant(
            content=content, tool_calls=calls or None, model=model, source="generate"
        ),
        stop_reason="tool_calls" if calls else reason,
        logprobs=Logprobs(content=[_logprob(token) for token in result.logprobs])
        if result.logprobs
        else None,
    )


def _call(call: ToolCall) -> InspectCall:
    problem, arguments = None, None
    try:
        arguments = json.loads(call.arguments)
    except ValueError as error:
        problem = f"the arguments are no JSON: {error}"
    if problem is None and not isinstance(arguments, dict):
        problem = "the arguments are no JSON object."
    return InspectCall(
        id=call.id or "",
        function=call.name,
        arguments=arguments if isinstance(arguments, dict) else {},
        parse_error=problem,
    )


def _logprob(token: TokenLogprob) -> Logprob:
    top = [
        TopLogprob(token=_string(piece), logprob=logprob, bytes=list(piece))
        for _, piece, logprob in token.top
    ]
    return Logprob(
        token=_string(token.token),
        logprob=token.logprob,
        bytes=list(token.token),
        top_logprobs=top or None,
    )


def _string(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


def json_schema(schema: Any) -> dict[str, Any]:
    """Return the JSON schema of Inspect's `ResponseSchema`."""
    return schema.json_schema.model_dump(exclude_none=True, by_alias=True)
