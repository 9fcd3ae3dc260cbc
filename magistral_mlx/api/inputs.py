"""Conversion of prompts to typed messages: from text, typed messages, or dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from magistral_mlx.api.image_inputs import Images, kind_of, to_images
from magistral_mlx.api.message_dicts import parse_message, parse_tool
from magistral_mlx.api.message_texts import check_message, check_text
from magistral_mlx.chat.messages import (
    Assistant,
    Image,
    Message,
    RawPrompt,
    System,
    Tool,
    ToolResult,
    User,
)
from magistral_mlx.errors import PromptError

PromptLike: TypeAlias = (
    str | RawPrompt | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]
)
ToolLike: TypeAlias = Tool | Mapping[str, Any] | Callable[..., Any]

_TYPED = System | User | Assistant | ToolResult


def to_messages(
    prompt: PromptLike,
    images: Images = (),
    *,
    local_files: bool = True,
) -> list[Message]:
    """`prompt` as messages, with `images` before the text of the last user's message.

    Args:
        prompt: a user's text, one message, or several; dicts are those of OpenAI's and Mistral's
            chat APIs.
        images: paths, bytes, PIL images, data URLs or Images.
        local_files: whether a dict may name an image by its path. A server must not allow it.

    Raises:
        PromptError: naming the message and the field that is wrong.
        ImageError: an image that cannot be opened.
    """
    images = to_images(images)
    if isinstance(prompt, str):
        check_text(prompt, "the prompt")
        messages: list[Message] = [User(prompt)]
    elif isinstance(prompt, _TYPED | Mapping):
        messages = [_to_message(prompt, "the message", local_files)]
    elif isinstance(prompt, RawPrompt):
        raise PromptError("a RawPrompt is no message: it cannot be part of a conversation.")
    elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray):
        messages = [
            _to_message(entry, f"messages[{n}]", local_files) for n, entry in enumerate(prompt)
        ]
    else:
        raise PromptError(
            f"a prompt is text, a message or a list of messages, not {kind_of(prompt)}."
        )
    return with_images(messages, images) if images else messages


def with_images(messages: Sequence[Message], images: Sequence[Image]) -> list[Message]:
    """`messages` with `images` before what the last user's message holds.

    Raises:
        PromptError: there is no user's message.
    """
    for n in reversed(range(len(messages))):
        user = messages[n]
        if isinstance(user, User):
            content = (user.content,) if isinstance(user.content, str) else user.content
            held = tuple(part for part in content if part != "")
            return [
                *messages[:n],
                replace(user, content=(*images, *held)),
                *messages[n + 1 :],
            ]
    raise PromptError("images were given, but there is no user's message that could hold them.")


def to_tools(tools: Iterable[ToolLike] | None) -> tuple[Tool, ...]:
    """Typed tools, dicts as in OpenAI's API, or Python functions, as typed tools.

    Raises:
        PromptError: naming the tool and the field that is wrong, or the name that two have.
    """
    if isinstance(tools, Tool | Mapping) or callable(tools):
        tools = (tools,)
    found = tuple(_to_tool(tool, f"tools[{n}]") for n, tool in enumerate(tools or ()))
    places: dict[str, int] = {}
    for n, tool in enumerate(found):
        if not tool.name:
            raise PromptError(f"tools[{n}] has an empty name. The model calls a tool by its name.")
        if (first := places.setdefault(tool.name, n)) != n:
            raise PromptError(
                f"tools[{first}] and tools[{n}] are both named {tool.name[:100]!r}. The model "
                "calls a tool by its name: give each one of its own."
            )
    return found


def _to_tool(tool: ToolLike, where: str) -> Tool:
    if isinstance(tool, Tool):
        return tool
    if isinstance(tool, Mapping) or not callable(tool):
        return parse_tool(tool, where)
    from magistral_mlx.api.functions import function_tool

    return function_tool(tool)


def _to_message(entry: Any, where: str, local_files: bool) -> Message:
    if isinstance(entry, _TYPED):
        check_message(entry, where)
        return entry
    if isinstance(entry, Mapping):
        return parse_message(entry, where, local_files=local_files)
    raise PromptError(f"{where} must be a message or a dict with a role, not {kind_of(entry)}.")
