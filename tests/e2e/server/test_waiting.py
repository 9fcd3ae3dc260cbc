"""What requests take of the machine, and are told, before their answer begins."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from magistral_mlx.chat.messages import Picture
from magistral_mlx.server import preparation, serving
from magistral_mlx.server.settings import Limits, Settings
from tests.serving import CHAT, Server, live_server, wait_until

COUNT = "/v1/messages/count_tokens"


def picture() -> str:
    file = io.BytesIO()
    Image.new("RGB", (28, 28), "red").save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def seeing(url: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "?"}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 2}


class Gate:
    """Stands around a function: counts who is inside, and lets them on when it is opened."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self.open = threading.Event()
        self.inside = 0
        self.most = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        try:
            self.open.wait(60)
            return self._function(*args, **options)
        finally:
            with self._lock:
                self.inside -= 1


def test_prompts_with_pictures_are_opened_one_at_a_time_and_texts_pass_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(Picture.open)
    monkeypatch.setattr(Picture, "open", gate)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.post, CHAT, seeing(picture())) for _ in range(4)]
        wait_until(lambda: gate.inside == 1 and server.serving.waiting == 4)
        assert server.ask("What is 37 + 85?")[0] == 200
        gate.open.set()
        assert [each.result()[0] for each in asked] == [200] * 4
    assert gate.most == 1


def test_pictures_that_wait_are_bounded_by_the_bytes_they_take(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(Picture.open)
    monkeypatch.setattr(Picture, "open", gate)
    monkeypatch.setattr(serving, "_WAITING_BYTES", 28 * 28 * 12 + 1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, CHAT, seeing(picture()))
        wait_until(lambda: gate.inside == 1)
        status, body = server.post(CHAT, seeing(picture()))
        assert (status, body["error"]["code"]) == (429, "queue_full")
        gate.open.set()
        assert first.result()[0] == 200


def test_counting_holds_up_no_chat_and_counts_as_waiting(monkeypatch: pytest.MonkeyPatch):
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    with live_server(Settings(models=("demo",), limits=Limits(queue=3))) as server:
        found = server.serving.catalog.find("demo")
        gate = Gate(found.prompt)
        monkeypatch.setattr(found, "prompt", gate)
        with ThreadPoolExecutor() as pool:
            counts = [pool.submit(server.post, COUNT, body) for _ in range(2)]
            wait_until(lambda: server.serving._counting == 2 and gate.inside == 1)
            assert server.ask("What is 37 + 85?")[0] == 200
            counts.append(pool.submit(server.post, COUNT, body))
            wait_until(lambda: server.serving._counting == 3)
            status, refusal = server.post(COUNT, body)
            assert (status, refusal["error"]["type"]) == (429, "rate_limit_error")
            assert server.ask("What is 37 + 85?")[0] == 429
            gate.open.set()
            assert [each.result()[0] for each in counts] == [200] * 3
        assert gate.most == 1


def test_a_prompt_lets_go_of_its_pictures_once_it_is_made():
    made = preparation.Preparation(1).opened(seeing(picture())["messages"])
    assert len(list(made)) == 1
    assert list(made) == [], "nothing holds the pixels any more"
