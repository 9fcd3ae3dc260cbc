"""Tools of MCP servers: for the page of this server, and never for a page of another origin."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from magistral_mlx.errors import ToolServerError
from magistral_mlx.mcp.config import ServerSpec
from magistral_mlx.server import launcher
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.settings import Settings
from tests.mcp_servers import NOON, SILENT, TIME, write_servers
from tests.serving import Server, live_server, wait_until, write_endless_checkpoint

SPEC = ServerSpec(name="time", command=TIME["command"], args=tuple(TIME["args"]))
SLOW = ServerSpec(name="slow", command=SILENT["command"], args=tuple(SILENT["args"]))
GONE = ServerSpec(name="gone", command="/no/such")
CALL = {"name": "time_convert_time", "arguments": NOON}


@pytest.fixture(scope="module")
def tooled() -> Iterator[Server]:
    settings = Settings(models=("demo",), mcp=(SPEC,), cors_origins=("https://chat.example", "*"))
    with live_server(settings) as server:
        wait_until(lambda: server.get("/v1/mcp/tools", sec_fetch_site="same-origin")[0] == 200)
        yield server


def test_the_page_lists_and_calls_them(tooled: Server):
    assert tooled.get("/v1/models")[1]["mcp"] is True
    status, found = tooled.get("/v1/mcp/tools", sec_fetch_site="same-origin")
    assert status == 200
    assert [tool["name"] for tool in found["tools"]] == [
        "time_get_current_time", "time_convert_time",
    ]  # fmt: skip
    status, result = tooled.post("/v1/mcp/calls", CALL, origin=tooled.url)
    assert (status, result["is_error"]) == (200, False)
    assert "21:00:00+09:00" in result["content"]
    status, result = tooled.post("/v1/mcp/calls", {"name": "time_get_current_time"})
    assert (status, result["is_error"]) == (200, True)
    status, answer = tooled.post("/v1/mcp/calls", {"name": "rm"})
    assert (status, answer["error"]["code"]) == (404, "unknown_tool")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://chat.example"},  # which --cors lets use the models
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"host": "evil.example"},
    ],
)
def test_a_page_of_another_origin_never_reaches_them(tooled: Server, headers: dict[str, str]):
    assert tooled.get("/v1/mcp/tools", **headers)[0] == 403
    assert tooled.post("/v1/mcp/calls", CALL, **headers)[0] == 403


def test_no_server_is_blamed_while_all_of_them_are_being_closed(
    tooled: Server, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tooled.service.mcp, "connected", False)
    status, answer = tooled.get("/v1/mcp/tools")
    assert status == 503
    assert answer["error"]["message"] == "the MCP servers are being connected or closed."


def test_they_are_off_unless_asked_for(server: Server):
    assert server.get("/v1/models")[1]["mcp"] is False
    assert server.get("/v1/mcp/tools")[0] == 404
    assert server.post("/v1/mcp/calls", CALL)[0] == 404


def test_the_model_answers_while_they_are_being_connected():
    with live_server(Settings(models=("demo",), mcp=(SLOW,))) as server:
        assert server.get("/health")[0] == 200
        for status, body in (server.get("/v1/mcp/tools"), server.post("/v1/mcp/calls", CALL)):
            assert (status, body["error"]["code"]) == (503, "unavailable")
            assert "slow" in body["error"]["message"]
        assert server.ask("What is 37 + 85?")[1]["choices"][0]["message"]["content"] == "122"


def test_one_that_cannot_be_reached_is_why_there_are_none():
    with live_server(Settings(models=("demo",), mcp=(GONE,)), ready=False) as server:
        wait_until(lambda: server.service.load_error is not None)
        assert server.get("/v1/mcp/tools")[0] == 503
        assert "there is no command /no/such" in server.get("/ready")[1]["error"]["message"]


def test_one_that_fails_late_ends_the_answers_that_run(tmp_path: Path):
    model = str(write_endless_checkpoint(tmp_path / "endless"))
    talks: list[Future[list[Any]]] = []
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as pool:
        late = ServerSpec(name="late", url=launcher.url_of(silent))

        def talk(url: str) -> list[Any]:
            with silent, Server(url, 0, FastAPI()).streaming("Go") as chunks:
                first = next(chunks)
                silent.close()
                return [first, *chunks]

        with pytest.raises(ToolServerError, match="late cannot be reached"):
            launcher.serve(
                Settings(models=(model,), port=0, mcp=(late,), grace=0),
                on_listening=lambda urls, service: talks.append(pool.submit(talk, urls[0])),
                on_waiting=lambda names: None,
                on_ready=lambda: pytest.fail("it is not ready"),
            )
        chunks = talks[0].result()
    assert chunks[-1]["choices"][0]["finish_reason"] == "length", "it is not cut"
    assert len(chunks) < 8192, "nor does it fill the context"


def test_one_that_fails_while_the_server_shuts_down_is_no_error():
    async def start_and_stop() -> GenerationService:
        service = GenerationService(Settings(models=("demo",), mcp=(GONE,)))
        service.start()
        service.stop()
        await service.mcp_settled.wait()
        await service.close()
        return service

    assert asyncio.run(start_and_stop()).load_error is None


def test_ctrl_c_ends_the_wait_for_one_that_does_not_answer():
    waited: list[str] = []

    def interrupt(names: list[str]) -> None:
        waited.extend(names)
        os.kill(os.getpid(), signal.SIGINT)

    launcher.serve(
        Settings(models=("demo",), port=0, mcp=(SLOW,)),
        on_listening=lambda urls, service: None,
        on_waiting=interrupt,
        on_ready=lambda: pytest.fail("it is not ready"),
    )
    assert waited == ["slow"]


def test_a_server_that_is_none_ends_serve_with_one_line(tmp_path: Path):
    file = write_servers(tmp_path / "mcp.json", a={"command": "/no/such"})
    words = ("serve", "demo", "--port", "0", "--mcp", str(file))
    done = subprocess.run(
        [sys.executable, "-m", "magistral_mlx.cli.main", *words],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "magistral-mlx: the MCP server a cannot be started: there is no command /no/such."
    )
    assert "Traceback" not in done.stderr
