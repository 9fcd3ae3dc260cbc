"""Conversion of messages to mistral-common's chat completion request."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, TypeGuard

from magistral_mlx.chat.messages import (
    Assistant,
    Image,
    Message,
    System,
    Thought,
    Tool,
    ToolResult,
    User,
)
from magistral_mlx.errors import ImageError, PromptError

if TYPE_CHECKING:
    from mistral_common.protocol.instruct import chunk, messages, request, tool_calls


_ID = re.compile(r"[a-zA-Z0-9]{9}")  # ids of calls that every tokenizer version accepts


def build_mistral_request(
    conversation: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    thinking: bool,
    images: bool,
) -> request.ChatCompletionRequest[Any]:
    """Build the mistral-common request of a conversation.

    `thinking` and `images` say whether the tokenizer has tokens for them. Without thinking
    tokens, earlier thinking is left out, as such a model never saw any.

    Raises PromptError for a conversation that ends in nothing to answer, a tool result without a
    call, or a system prompt with thinking where the tokenizer has none; ImageError for images
    where it has none.
    """
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    last = conversation[-1] if conversation else None
    if not isinstance(last, User | ToolResult) and not _is_open(last):
        raise PromptError(
            "there is nothing to answer: the last message must be a user's or a tool's result, or "
            "an assistant's with prefix=True, which is continued."
        )
    calls = _CallIds()
    closed = [_message(m, calls, thinking, images) for m in conversation[:-1]]
    return ChatCompletionRequest(
        messages=[*closed, _message(conversation[-1], calls, thinking, images, last=True)],
        tools=[_tool(tool) for tool in tools] or None,
    )


def ends_inside_thinking(conversation: Sequence[Message], *, thinking: bool) -> bool:
    """Whether the prompt for `conversation` ends inside an open trace, which is continued."""
    last = conversation[-1] if conversation else None
    return thinking and _is_open(last) and last.thinking is not None and not last.text


def _is_open(message: Message | None) -> TypeGuard[Assistant]:
    return isinstance(message, Assistant) and message.prefix and not message.tool_calls


class _CallIds:
    """Gives ids to calls that have none, and pairs results with calls, in order.

    Ids are counted per conversation, so the same conversation always gives the same prompt. Older
    tokenizer versions accept nine letters and digits only: other ids are replaced by their hashes.
    """

    def __init__(self) -> None:
        self._fresh: Iterator[str] = (f"{n:09d}" for n in count(1))
        self._calls: list[str] = []  # of the last turn with calls
        self._unanswered: deque[str] = deque()

    def of_calls(self, message: Assistant) -> list[str]:
        ids = [_accepted(call.id or next(self._fresh)) for call in message.tool_calls]
        if ids:
            self._calls = ids
        self._unanswered = deque(ids)
        return ids

    def of_result(self, message: ToolResult) -> str:
        if not self._unanswered:
            raise PromptError("a tool result answers no call: every result needs a call before it.")
        if message.call_id is None:
            return self._unanswered.popleft()
        call_id = _accepted(message.call_id)
        if call_id not in self._calls:
            raise PromptError(
                f"a tool result names the call {message.call_id[:100]!r}, which the model did not "
                "make in its last turn. Give it the id of one of those calls."
            )
        if call_id in self._unanswered:
            self._unanswered.remove(call_id)
        return call_id


def _accepted(id: str) -> str:
    """`id`, or nine characters of its hash where the template would refuse it."""
    return id if _ID.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()[:9]


def _message(
    message: Message, calls: _CallIds, thinking: bool, images: bool, last: bool = False
) -> messages.ChatMessage:
    from mistral_common.protocol.instruct.messages import SystemMessage, ToolMessage, UserMessage

    match message:
        case System(content=str(text)) | User(content=str(text)):
            kind = SystemMessage if isinstance(message, System) else UserMessage
            return kind(content=text)
        case System(content=parts):
            return SystemMessage(content=[_system_chunk(part, thinking) for part in parts])
        case User(content=parts):
            return UserMessage(content=[_user_chunk(part, images) for part in parts])
        case Assistant():
            return _assistant(message, calls.of_calls(message), thinking, last)
        case ToolResult(content=content):
            return ToolMessage(content=content, tool_call_id=calls.of_result(message))
        case _:
            raise PromptError(
                f"a message must be System, User, Assistant or ToolResult, not {type(message)}."
            )


def _system_chunk(part: str | Thought, thinking: bool) -> chunk.ContentChunk:
    from mistral_common.protocol.instruct.chunk import TextChunk, ThinkChunk

    if isinstance(part, str):
        return TextChunk(text=part)
    if not isinstance(part, Thought):
        raise PromptError(f"a system prompt is made of text and Thought, not {type(part)}.")
    if not thinking:
        raise PromptError(
            "the system prompt has a thinking part, but this model's tokenizer has no [THINK] "
            "token: give the system prompt as plain text."
        )
    return ThinkChunk(thinking=part.text, closed=True)


def _user_chunk(part: str | Image, images: bool) -> chunk.ContentChunk:
    from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk

    if isinstance(part, str):
        return TextChunk(text=part)
    if not isinstance(part, Image):
        raise PromptError(
            f"a user's message is made of text and Image, not {type(part)}: make an image with "
            "Image.open."
        )
    if not images:
        raise ImageError(
            "this model's tokenizer has no image tokens: it reads text only. Leave the image "
            "out, or choose a model with a vision tower."
        )
    return ImageChunk(image=part.image)


def _assistant(
    message: Assistant, ids: list[str], thinking: bool, last: bool
) -> messages.AssistantMessage:
    from mistral_common.protocol.instruct.chunk import TextChunk, ThinkChunk
    from mistral_common.protocol.instruct.messages import AssistantMessage
    from mistral_common.protocol.instruct.tool_calls import FunctionCall, ToolCall

    content: str | list[chunk.ContentChunk] = message.text
    if thinking and message.thinking is not None:
        closed = not last or bool(message.text)
        content = [ThinkChunk(thinking=message.thinking, closed=closed)]
        if message.text:
            content.append(TextChunk(text=message.text))
    if not content and not ids:
        raise PromptError(
            "an assistant's message is empty: it needs text, thinking or a tool call. Leave it out."
        )
    calls = [
        ToolCall(id=id, function=FunctionCall(name=call.name, arguments=call.arguments))
        for id, call in zip(ids, message.tool_calls, strict=True)
    ]
    return AssistantMessage(content=content or None, tool_calls=calls or None, prefix=last)


def _tool(tool: Tool) -> tool_calls.Tool:
    from mistral_common.protocol.instruct.tool_calls import Function
    from mistral_common.protocol.instruct.tool_calls import Tool as MistralTool

    return MistralTool(
        function=Function(
            name=tool.name, description=tool.description, parameters=dict(tool.parameters)
        )
    )
