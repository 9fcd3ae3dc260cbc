"""The file that names MCP servers, spelled as other clients spell it.

{"mcpServers": {"time": {"command": "mcp-server-time"}, "docs": {"url": "http://…/mcp"}}}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magistral_mlx.errors import InvalidOption
from magistral_mlx.files import read_text_file

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")  # a part of each tool's name
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_TYPES = {"stdio": "command", "http": "url", "streamable-http": "url", "streamableHttp": "url"}


@dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """An MCP server: a command that is started, or the URL of one that runs.

    env: variables that the command gets besides a few safe ones. headers: of HTTP requests.
    """

    name: str
    command: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    url: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_servers(path: str | Path) -> tuple[ServerSpec, ...]:
    """Read the servers that a file names, in its order; disabled ones are left out.

    `${NAME}` and `${NAME:-default}` in values stand for environment variables.

    Raises:
        InvalidOption: it cannot be read, or an entry is wrong.
    """
    text = read_text_file(path, "the file of MCP servers")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidOption(f"the file of MCP servers {path} is not JSON: {error}.") from None
    servers = content.get("mcpServers") if isinstance(content, dict) else None
    if not isinstance(servers, dict):
        raise InvalidOption(
            f'the file of MCP servers {path} has no object "mcpServers": expected {{"mcpServers": '
            '{"NAME": {"command": …}}}.'
        )
    return tuple(
        _spec(name, entry)
        for name, entry in servers.items()
        if not (isinstance(entry, dict) and entry.get("disabled") is True)
    )


def _spec(name: str, entry: Any) -> ServerSpec:
    where = f"the MCP server {name[:64]!r}"
    if not _NAME.fullmatch(name):
        raise InvalidOption(
            f"{where} has no usable name: up to 32 letters, digits, - and _ are expected."
        )
    if not isinstance(entry, dict):
        raise InvalidOption(f'{where} must be an object with "command" or "url".')
    kind = entry.get("type", entry.get("transport"))
    if kind is not None and not (isinstance(kind, str) and kind in _TYPES):
        raise InvalidOption(f"{where} has the type {kind!r}; it must be stdio or http.")
    needed = _TYPES[kind] if kind else "url" if "url" in entry else "command"
    target = _text(entry.get(needed), f"{needed} of {where}")
    if needed == "url":
        if not re.match(r"https?://[^/\s]", target):
            raise InvalidOption(f"url of {where} must begin with http:// or https://.")
        return ServerSpec(
            name=name, url=target, headers=_texts(entry.get("headers"), f"headers of {where}")
        )
    args = entry.get("args", [])
    if not isinstance(args, list):
        raise InvalidOption(f"args of {where} must be a list of texts.")
    cwd = entry.get("cwd")
    return ServerSpec(
        name=name,
        command=target,
        args=tuple(_text(arg, f"args of {where}", empty=True) for arg in args),
        env=_texts(entry.get("env"), f"env of {where}"),
        cwd=None if cwd is None else _text(cwd, f"cwd of {where}"),
    )


def _texts(value: Any, where: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidOption(f"{where} must be an object of texts.")
    return {key: _text(text, where, empty=True) for key, text in value.items()}


def _text(value: Any, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty) or "\0" in value:
        raise InvalidOption(f"{where} must be a text{'' if empty else ', not empty'}.")

    def variable(found: re.Match[str]) -> str:
        known = os.environ.get(found[1], found[2])
        if known is None:
            raise InvalidOption(f"{where} names ${{{found[1]}}}, which is not set. Set it first.")
        return known

    return _VARIABLE.sub(variable, value)
