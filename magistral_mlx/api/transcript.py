"""A conversation in a JSON file: dicts as in OpenAI's API, images as data URLs."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magistral_mlx.api.message_dicts import parse_message, to_dict
from magistral_mlx.api.options import DEFAULT, Default
from magistral_mlx.chat.messages import Image, Message, System
from magistral_mlx.errors import PromptError, StorageError
from magistral_mlx.files import is_endless

_FORMAT, _VERSION = "magistral-mlx conversation", 1


def write_transcript(
    path: Path, messages: Sequence[Message], system: System | str | Default | None, model: str
) -> None:
    """Write a conversation to `path`, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION, "model": model}
    if system is not DEFAULT:
        assert system is None or isinstance(system, System)
        content["system"] = None if system is None else to_dict(system, _data_url)["content"]
    content["messages"] = [to_dict(message, _data_url) for message in messages]
    text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
    try:
        _replace(path, text.encode())
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"the conversation cannot be saved to {path}: {reason}.") from error
    except ValueError as error:  # a zero byte in the path
        raise StorageError(f"{str(path)!r} is not a path: {error}.") from error


def read_transcript(path: Path) -> tuple[list[Message], System | Default | None]:
    """The messages and the system prompt in a file that `write_transcript` wrote.

    Raises:
        PromptError: the file is missing, unreadable, or no conversation.
    """
    if is_endless(path):
        raise PromptError(f"{path} is a device or a pipe; a saved conversation is a file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PromptError(f"there is no conversation {path}. Check the path.") from None
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(
            f"{path} is not JSON: {error}. It is damaged, or another file."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise PromptError(f"{path} is not a conversation that was saved by magistral-mlx.")
    if content.get("version") != _VERSION:
        raise PromptError(
            f"{path} has version {content.get('version')!r} of the format, and this magistral-mlx "
            f"reads version {_VERSION}. A newer one may read it."
        )
    entries = content.get("messages")
    if not isinstance(entries, list):
        raise PromptError(f"{path} holds no list of messages. It is damaged.")
    messages = [_parse(entry, f"messages[{n}]", path) for n, entry in enumerate(entries)]
    if "system" not in content:
        return messages, DEFAULT
    if content["system"] is None:
        return messages, None
    system = _parse({"role": "system", "content": content["system"]}, "system", path)
    assert isinstance(system, System)
    return messages, system


def _parse(entry: Any, where: str, path: Path) -> Message:
    if not isinstance(entry, dict):
        raise PromptError(f"{path}: {where} is no message. The file is damaged.")
    return parse_message(entry, f"{path}: {where}", local_files=False)


def _data_url(image: Image) -> str:
    """Lossless, so that the conversation goes on as if it had not been saved."""
    data = io.BytesIO()
    image.image.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _replace(path: Path, data: bytes) -> None:
    """Write `path` by way of a file beside it. It may be read by its owner only."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
