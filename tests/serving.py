"""A live server: uvicorn on a free port of 127.0.0.1, in a thread of its own.

    from tests.serving import live_server, server  # noqa: F401  (a fixture)

`server` is shared by the whole session and answers with the demo model; a test that needs other
settings starts its own with `live_server`.
"""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from magistral_mlx.api import Magistral
from magistral_mlx.server.app import create_app
from magistral_mlx.server.serving import Serving
from magistral_mlx.server.settings import Settings


@dataclass
class Server:
    """One that answers at `url`, without a slash at its end."""

    url: str
    port: int
    app: FastAPI

    @property
    def serving(self) -> Serving:
        return self.app.state.serving

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Status and body; JSON is parsed."""
        return self.request("GET", path, None, **headers)

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        """Status and body; `body` is sent as JSON, or as it is if it is bytes."""
        return self.request("POST", path, body, **headers)

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
) -> Iterator[Server]:
    """A server with `settings` (the demo model), once its model is loaded."""
    app = create_app(settings or Settings(models=("demo",)), load)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(app, log_level="warning", lifespan="on")
        process = uvicorn.Server(config)
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


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The demo model behind every endpoint."""
    with live_server() as running:
        yield running


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return when `condition` holds; fail if it does not within `seconds`."""
    tick = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        tick.wait(0.01)
    raise AssertionError(f"not within {seconds} s: {condition}")


def _is_ready(server: Server) -> bool:
    assert server.serving.failed is None, server.serving.failed
    try:
        return server.get("/ready")[0] == 200
    except OSError:  # it does not listen yet
        return False


def _parsed(response: Any) -> Any:
    data = response.read()
    if response.headers.get_content_type() == "application/json":
        return json.loads(data)
    return data.decode()
