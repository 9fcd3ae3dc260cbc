"""A live server: uvicorn on a free port of 127.0.0.1, in a thread of its own.

The fixture `server` is shared by a module's tests and answers with the demo model (the tests in
tests/e2e/server have it); a test that needs other settings starts its own with `live_server`.
"""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from magistral_mlx import Magistral
from magistral_mlx.server.app import create_app
from magistral_mlx.server.launcher import uvicorn_config
from magistral_mlx.server.service import GenerationService
from magistral_mlx.server.settings import Settings
from tests.scripted import write_scripted_checkpoint

CHAT = "/v1/chat/completions"


@dataclass
class Server:
    """One that answers at `url`, without a slash at its end."""

    url: str
    port: int
    app: FastAPI

    @property
    def service(self) -> GenerationService:
        return self.app.state.service

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Status and body; JSON is parsed."""
        return self.request("GET", path, None, **headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and body; `body` is sent as JSON, or as it is if it is bytes."""
        return self.request("POST", path, body, **headers)

    def ask(
        self, prompt: str, headers: Mapping[str, str] | None = None, **fields: Any
    ) -> tuple[int, Any]:
        """A chat completion, greedy unless `fields` say otherwise."""
        messages = [{"role": "user", "content": prompt}]
        body = {"messages": messages, "temperature": 0} | fields
        return self.post(CHAT, body, **(headers or {}))

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample of /metrics; 0 if it is not there."""
        text = self.get("/metrics")[1]
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return 0.0

    @contextmanager
    def streaming(self, prompt: str, **fields: Any) -> Iterator[Iterator[Any]]:
        """The chunks of a streamed chat completion, as they come; leaving hangs up."""
        messages = [{"role": "user", "content": prompt}]
        body = {"messages": messages, "temperature": 0, "stream": True} | fields
        request = urllib.request.Request(
            self.url + CHAT, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            yield _chunks(response)

    def request(self, method: str, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        names = {"Content-Type": "application/json"} | names
        request = urllib.request.Request(self.url + path, data, names, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, _parsed(response)
        except urllib.error.HTTPError as error:
            return error.code, _parsed(error)


@contextmanager
def live_server(
    settings: Settings | None = None,
    load: Callable[..., Magistral] = Magistral.load,
    *,
    ready: bool = True,
    connections: int | None = None,
) -> Iterator[Server]:
    """A server with `settings` (the demo model), once its model is loaded."""
    app = create_app(settings or Settings(models=("demo",)), load)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = settings or Settings(models=("demo",))
        process = uvicorn.Server(uvicorn_config(app, settings.grace, connections))
        thread = threading.Thread(target=process.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        server = Server(f"http://127.0.0.1:{port}", port, app)
        try:
            if ready:
                wait_until(lambda: _is_ready(server))
            yield server
        finally:
            process.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The demo model behind every endpoint. Later modules find the memory as it was before."""
    with live_server() as running:
        yield running


def write_endless_checkpoint(folder: Path) -> Path:
    """A model that says "on" until it is stopped, or its context is full."""
    return write_scripted_checkpoint(folder, ["[/INST]", " on", " on"], context=16_384)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when `condition` holds; fail if it does not within `seconds`."""
    tick = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError(f"not within {seconds} s: {condition}")


def _is_ready(server: Server) -> bool:
    assert server.service.load_error is None, server.service.load_error
    try:
        return server.get("/ready")[0] == 200
    except OSError:  # it does not listen yet
        return False


def _chunks(response: Iterable[bytes]) -> Iterator[Any]:
    for line in response:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


def _parsed(response: Any) -> Any:
    data = response.read()
    if response.headers.get_content_type() == "application/json":
        return json.loads(data)
    return data.decode()
