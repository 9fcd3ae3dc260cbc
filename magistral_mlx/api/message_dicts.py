"""Messages and tools as dicts, the way OpenAI's and Mistral's chat APIs spell them.

Both ways: `parse_message` reads what apps pass, `to_dict` writes what a saved conversation holds,
and the first reads what the second wrote back into an equal message. A server that has translated
another API's messages names the field of an image, as its client knows it, in the part's `where`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from magistral_mlx.api.image_inputs import image_of_url, open_image
from magistral_mlx.api.message_texts import check_message
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
from magistral_mlx.events import ToolCall

_TEXT = ("text", "input_text", "output_text")
_IMAGE = ("image_url", "input_image", "image")
_THINKING_FIELDS = ("reasoning_content", "reasoning", "thinking")


def parse_message(entry: Mapping[str, Any], where: str, *, local_files: bool = True) -> Message:
    """The typed message that `entry` stands for; `where` names it in errors.

    Raises:
        PromptError: naming the field that is wrong.
        ImageError: an image that cannot be opened.
    """
    if "role" not in entry:
        raise PromptError(
            f"{where} has no role: expected system, user, assistant or tool in a field 'role'."
        )
    message = _message(entry, where, local_files)
    check_message(message, where)
    return message


def _message(entry: Mapping[str, Any], where: str, local_files: bool) -> Message:
    content = entry.get("content")
    match entry["role"]:
        case "system" | "developer":
            return System(_system_content(content, f"{where}.content"))
        case "user":
            return User(_user_content(content, f"{where}.content", local_files))
        case "assistant":
            return _assistant(entry, where)
        case "tool":
            call_id = entry.get("tool_call_id")
            _expect(call_id, (str, type(None)), "text", f"{where}.tool_call_id")
            return ToolResult(_plain(content, f"{where}.content"), call_id)
        case role:
            raise PromptError(
                f"{where}.role is {role!r}; it must be system, user, assistant or tool."
            )


def parse_tool(entry: Any, where: str) -> Tool:
    """The tool of {"type": "function", "function": {…}}, or of the inner dict alone.

    Raises:
        PromptError: naming the field that is wrong.
    """
    _expect(entry, Mapping, "a dict or a Tool", where)
    kind = entry.get("type", "function")
    if kind != "function":
        raise PromptError(f"{where}.type is {kind!r}; only 'function' is known.")
    function = entry
    if "function" in entry:
        function, where = entry["function"], f"{where}.function"
        _expect(function, Mapping, "a dict", where)
    name = function.get("name")
    _expect(name, str, "text", f"{where}.name")
    description = function.get("description") or ""
    _expect(description, str, "text", f"{where}.description")
    strict = function.get("strict") or False
    _expect(strict, bool, "true or false", f"{where}.strict")
    parameters = function.get("parameters")
    if parameters is None:
        return Tool(name, description, strict=strict)
    _expect(parameters, Mapping, "a JSON schema (a dict)", f"{where}.parameters")
    return Tool(name, description, parameters, strict)


def to_dict(message: Message, image_url: Callable[[Image], str]) -> dict[str, Any]:
    """`message` as a dict of JSON types; `image_url` makes the URL of an image."""
    match message:
        case System(str(text)):
            return {"role": "system", "content": text}
        case System(parts):
            return {"role": "system", "content": [_system_part(part) for part in parts]}
        case User(str(text)):
            return {"role": "user", "content": text}
        case User(parts):
            return {"role": "user", "content": [_user_part(part, image_url) for part in parts]}
        case ToolResult(content, call_id):
            result = {"role": "tool", "content": content}
            return result if call_id is None else result | {"tool_call_id": call_id}
        case Assistant():
            return _assistant_dict(message)


# Reading


def _system_content(content: Any, where: str) -> str | tuple[str | Thought, ...]:
    def part(chunk: Mapping[str, Any], kind: str, where: str) -> str | Thought:
        if kind == "thinking":
            return Thought(_plain(chunk.get("thinking"), f"{where}.thinking"))
        raise _unknown_kind(kind, where, "text or thinking")

    return _content(content, where, part)


def _user_content(content: Any, where: str, local_files: bool) -> str | tuple[str | Image, ...]:
    def part(chunk: Mapping[str, Any], kind: str, where: str) -> str | Image:
        if kind not in _IMAGE:
            raise _unknown_kind(kind, where, "text or image_url")
        field = "image" if kind == "image" and "image" in chunk else "image_url"
        source, where = chunk.get(field), f"{where}.{field}"
        if isinstance(source, Mapping):
            source, where = source.get("url"), f"{where}.url"
        if source is None:
            raise PromptError(f"{where} is missing: it holds the image.")
        return _image(source, chunk.get("where", where), local_files)

    return _content(content, where, part)


def _image(source: Any, where: str, local_files: bool) -> Image:
    try:
        if isinstance(source, str):
            return image_of_url(source, where, local_files=local_files)
        return open_image(source)
    except ImageError as error:
        text = str(error)
        placed = ImageError(text if text.startswith(where) else f"{where}: {text}")
        placed.where = where
        raise placed from error


def _content(content: Any, where: str, part: Callable[[Mapping[str, Any], str, str], Any]) -> Any:
    """Text as it is; a list of chunks as a tuple, where `part` reads all that are not text."""
    if isinstance(content, str):
        return content
    _expect(content, list | tuple, "text or a list of chunks", where)
    parts = []
    for n, chunk in enumerate(content):
        here = f"{where}[{n}]"
        if isinstance(chunk, str):
            parts.append(chunk)
            continue
        _expect(chunk, Mapping, "a dict with a type", here)
        kind = chunk.get("type")
        if kind in _TEXT:
            _expect(chunk.get("text"), str, "text", f"{here}.text")
            parts.append(chunk["text"])
        else:
            _expect(kind, str, "text", f"{here}.type")
            parts.append(part(chunk, kind, here))
    return tuple(parts)


def _assistant(entry: Mapping[str, Any], where: str) -> Assistant:
    thinking = None
    for field in _THINKING_FIELDS:
        if entry.get(field) is not None:
            thinking = _plain(entry[field], f"{where}.{field}")
            break
    content = entry.get("content")
    parts = () if content is None else _system_content(content, f"{where}.content")
    if not isinstance(parts, str):
        thoughts = [part.text for part in parts if isinstance(part, Thought)]
        thinking = "".join(thoughts) if thoughts else thinking
        parts = "".join(part for part in parts if isinstance(part, str))
    prefix = entry.get("prefix", False)
    _expect(prefix, bool, "true or false", f"{where}.prefix")
    return Assistant(parts, thinking, _calls(entry, where), prefix)


def _calls(entry: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    calls = entry.get("tool_calls") or ()
    where = f"{where}.tool_calls"
    _expect(calls, list | tuple, "a list", where)
    return tuple(_call(call, f"{where}[{n}]") for n, call in enumerate(calls))


def _call(call: Any, where: str) -> ToolCall:
    if isinstance(call, ToolCall):
        return call
    _expect(call, Mapping, "a dict", where)
    function = call.get("function")
    _expect(function, Mapping, "a dict", f"{where}.function")
    name, arguments, id = function.get("name"), function.get("arguments"), call.get("id")
    _expect(name, str, "text", f"{where}.function.name")
    _expect(id, (str, type(None)), "text", f"{where}.id")
    if isinstance(arguments, str):
        return ToolCall(name, arguments or "{}", id)  # as the model wrote them, JSON or not
    text = "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(name, text, id)


def _plain(content: Any, where: str) -> str:
    """Text, or the texts of a list of text chunks put together."""

    def part(chunk: Mapping[str, Any], kind: str, where: str) -> str:
        raise _unknown_kind(kind, where, "text")

    text = _content(content, where, part)
    return text if isinstance(text, str) else "".join(text)


def _unknown_kind(kind: str, where: str, known: str) -> PromptError:
    return PromptError(f"{where}.type is {kind!r}; it must be {known} here.")


def _expect(value: Any, kind: Any, what: str, where: str) -> None:
    if not isinstance(value, kind):
        given = "missing" if value is None else f"of type {type(value).__name__}"
        raise PromptError(f"{where} is {given}; it must be {what}.")


# Writing


def _system_part(part: str | Thought) -> dict[str, Any]:
    if isinstance(part, Thought):
        return {"type": "thinking", "thinking": part.text}
    return {"type": "text", "text": part}


def _user_part(part: str | Image, image_url: Callable[[Image], str]) -> dict[str, Any]:
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": image_url(part)}}
    return {"type": "text", "text": part}


def _assistant_dict(message: Assistant) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": "assistant", "content": message.text}
    if message.thinking is not None:
        entry["reasoning_content"] = message.thinking
    if message.tool_calls:
        entry["tool_calls"] = [
            {
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
                **({} if call.id is None else {"id": call.id}),
            }
            for call in message.tool_calls
        ]
    if message.prefix:
        entry["prefix"] = True
    return entry
