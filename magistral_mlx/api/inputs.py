"""What a caller may pass as a prompt, as typed messages: text, typed messages, or dicts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote, unquote_to_bytes, urlsplit

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
from magistral_mlx.errors import ImageError, PromptError

if TYPE_CHECKING:
    import PIL.Image

ImageSource: TypeAlias = "str | PathLike[str] | bytes | PIL.Image.Image | Image"
Images: TypeAlias = "ImageSource | Iterable[ImageSource]"
PromptLike: TypeAlias = (
    str | RawPrompt | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]]
)
ToolLike: TypeAlias = Tool | Mapping[str, Any]

_TYPED = (System, User, Assistant, ToolResult)


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
        messages: list[Message] = [User(prompt)]
    elif isinstance(prompt, _TYPED):
        messages = [prompt]
    elif isinstance(prompt, Mapping):
        messages = [_to_message(prompt, "the message", local_files)]
    elif isinstance(prompt, RawPrompt):
        raise PromptError("a RawPrompt is no message: it cannot be part of a conversation.")
    elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | bytearray):
        messages = [
            _to_message(entry, f"messages[{n}]", local_files) for n, entry in enumerate(prompt)
        ]
    else:
        raise PromptError(
            f"a prompt is text, a message or a list of messages, not {_kind(prompt)}."
        )
    return with_images(messages, images) if images else messages


def to_images(images: Images) -> list[Image]:
    """One image or several, opened.

    Raises:
        ImageError: one that cannot be opened.
    """
    if isinstance(images, str | bytes | PathLike | Image) or _is_pil(images):
        return [open_image(images)]  # type: ignore[arg-type]
    if not isinstance(images, Iterable):
        raise ImageError(f"images are a list of images, not {_kind(images)}.")
    return [open_image(source) for source in images]


def open_image(source: ImageSource) -> Image:
    """An image from a path, a data URL, bytes, a PIL image, or as it is.

    Raises:
        ImageError: it cannot be opened, or lies on the web.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, str) and source[:5].lower() == "data:":
        return Image.open(data_of_url(source))
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if not (isinstance(source, str | bytes | PathLike) or _is_pil(source)):
        raise ImageError(
            f"an image is a path, bytes, a PIL image or a data URL, not {_kind(source)}."
        )
    return Image.open(source)


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
    """Typed tools, or dicts as in OpenAI's API, as typed ones.

    Raises:
        PromptError: naming the tool and the field that is wrong.
    """
    from magistral_mlx.api.message_dicts import parse_tool

    if isinstance(tools, Tool | Mapping):
        tools = (tools,)
    return tuple(
        tool if isinstance(tool, Tool) else parse_tool(tool, f"tools[{n}]")
        for n, tool in enumerate(tools or ())
    )


def image_of_url(url: str, where: str, *, local_files: bool) -> Image:
    """The image that a dict's URL stands for: a data URL, a file:// URL or a path.

    Raises:
        ImageError: it cannot be opened, lies on the web, or is a file where none is allowed.
    """
    scheme = urlsplit(url[:4096]).scheme.lower()
    if scheme in ("http", "https"):
        raise ImageError(
            f"{where} is a web address, and nothing is downloaded here. Fetch the image first, "
            "and give its bytes or a data URL."
        )
    if scheme != "data" and not local_files:
        raise ImageError(f"{where} must be a data URL (data:image/png;base64,…).")
    try:
        return open_image(unquote(urlsplit(url).path) if scheme == "file" else url)
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from error


def _to_message(entry: Any, where: str, local_files: bool) -> Message:
    from magistral_mlx.api.message_dicts import parse_message

    if isinstance(entry, _TYPED):
        return entry
    if isinstance(entry, Mapping):
        return parse_message(entry, where, local_files=local_files)
    raise PromptError(f"{where} must be a message or a dict with a role, not {_kind(entry)}.")


def data_of_url(url: str) -> bytes:
    """What a data URL holds.

    Raises:
        ImageError: it is malformed.
    """
    head, comma, data = url.partition(",")
    if not comma:
        raise ImageError("the data URL has no comma, after which the image's data stands.")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(data)
    try:
        return base64.b64decode("".join(unquote(data).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the data URL is not valid base64: {error}.") from error


def _is_pil(value: object) -> bool:
    """Whether it is a PIL image, without importing PIL to find out that it is none."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
