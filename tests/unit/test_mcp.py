"""MCP servers: the file that names them, and their tools, with a real server by stdio and HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx import InvalidOption, MissingExtra
from magistral_mlx.errors import ToolServerError
from magistral_mlx.mcp import servers as module
from magistral_mlx.mcp.config import ServerSpec, read_servers
from magistral_mlx.mcp.servers import CallOutcome, MCPServers
from tests.mcp_servers import TIME, http_server, write_servers


def test_a_file_is_read_as_other_clients_spell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.delenv("NOWHERE", raising=False)
    file = write_servers(
        tmp_path / "mcp.json",
        files={"command": "npx", "args": ["-y", "server"], "env": {"KEY": "${TOKEN}"}},
        off={"command": "x", "disabled": True},
        web={
            "type": "http",
            "url": "http://${NOWHERE:-127.0.0.1}:8/mcp",
            "headers": {"Authorization": "Bearer ${TOKEN}"},
        },
    )
    assert read_servers(file) == (
        ServerSpec(name="files", command="npx", args=("-y", "server"), env={"KEY": "secret"}),
        ServerSpec(
            name="web", url="http://127.0.0.1:8/mcp", headers={"Authorization": "Bearer secret"}
        ),
    )
    assert "secret" not in repr(read_servers(file))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", 'has no object "mcpServers"'),
        ('{"servers": {}}', 'has no object "mcpServers"'),
        ({"a b": {"command": "x"}}, "'a b' has no usable name"),
        ({"": {"command": "x"}}, "'' has no usable name"),
        ({"a": "npx"}, "must be an object with"),
        ({"a": {}}, "command of the MCP server 'a' must be a text, not empty."),
        ({"a": {"command": 3}}, "command of the MCP server 'a' must be a text"),
        ({"a": {"command": "x", "args": "y"}}, "args of the MCP server 'a' must be a list"),
        ({"a": {"command": "x", "env": {"A": 1}}}, "env of the MCP server 'a' must be a text."),
        ({"a": {"command": "x", "env": ["A"]}}, "env of the MCP server 'a' must be an object"),
        ({"a": {"command": "x", "type": ["stdio"]}}, "has the type ['stdio']; it must be stdio"),
        ({"a": {"url": "file:///etc"}}, "must begin with http:// or https://"),
        ({"a": {"type": "sse", "url": "http://x"}}, "the type 'sse'; it must be stdio or http."),
        ({"a": {"command": "${NOT_SET_ANYWHERE}"}}, "names ${NOT_SET_ANYWHERE}, which is not set"),
    ],
)
def test_a_wrong_file_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mcp.json"
    file.write_text(content if isinstance(content, str) else json.dumps({"mcpServers": content}))
    with pytest.raises(InvalidOption) as caught:
        read_servers(file)
    assert words in str(caught.value)


def outcomes(spec: ServerSpec, *calls: tuple[str, dict[str, Any]]) -> Sequence[CallOutcome]:
    async def run() -> Sequence[CallOutcome]:
        async with MCPServers([spec]) as servers:
            assert {tool.server for tool in servers.tools} == {spec.name}
            return await asyncio.gather(*(servers.call(*call) for call in calls))

    return asyncio.run(run())


def test_a_real_server_is_started_asked_and_stopped() -> None:
    spec = ServerSpec(name="time", command=TIME["command"], args=tuple(TIME["args"]))
    noon, nowhere, nothing = outcomes(
        spec,
        (
            "time_convert_time",
            {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"},
        ),
        ("time_get_current_time", {"timezone": "Nowhere"}),
        ("time_get_current_time", {}),
    )
    assert json.loads(noon.text)["target"]["datetime"].endswith("T21:00:00+09:00")
    assert not noon.failed
    assert nowhere.failed and "Invalid timezone" in nowhere.text
    assert nothing.failed and "Field required" in nothing.text


def test_a_tool_that_is_unknown_is_named() -> None:
    with http_server() as url, pytest.raises(ToolServerError, match=r"no tool x\. Known: own_add"):
        outcomes(ServerSpec(name="own", url=url), ("x", {}))


def test_a_server_is_reached_by_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESULT", 50)
    with http_server() as url:
        added, shown, talked, failed = outcomes(
            ServerSpec(name="own", url=url),
            ("own_add", {"a": 37, "b": 85}),
            ("own_show", {}),
            ("own_talk", {"characters": 70}),
            ("own_fail_on_purpose", {}),  # its own name has signs that no tool's name may have
        )
    assert added == CallOutcome("122")
    assert shown == CallOutcome("a text\n\n[image, image/png, not shown]")
    assert talked.text == "x" * 50 + "\n[cut here: the result has 70 characters]"
    assert failed.failed and "on purpose" in failed.text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            ServerSpec(name="a", command="/no/such"),
            "a cannot be started: there is no command /no/such",
        ),
        (
            ServerSpec(name="a", command=sys.executable, args=("-c", "print(1)")),
            "a cannot be used",
        ),
        (ServerSpec(name="a", url="http://127.0.0.1:9/mcp"), "a cannot be reached"),
    ],
)
def test_a_server_that_is_none_is_named(spec: ServerSpec, words: str) -> None:
    with pytest.raises(ToolServerError) as caught:
        outcomes(spec)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ServerSpec(name="time", command=TIME["command"], args=tuple(TIME["args"]))
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(MissingExtra, match=r"--mcp needs mcp. Install.*'\.\[mcp\]'"):
        outcomes(spec)
