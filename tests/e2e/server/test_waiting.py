"""What requests take of the machine, and are told, before their answer begins."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import PIL.Image
import pytest

from magistral_mlx import Magistral
from magistral_mlx.chat.messages import Image
from magistral_mlx.errors import CheckpointError
from magistral_mlx.server import admission_queue, preprocessing, sse
from magistral_mlx.server.settings import Limits, Settings
from tests.serving import CHAT, Server, live_server, wait_until

COUNT = "/v1/messages/count_tokens"


def image() -> str:
    file = io.BytesIO()
    PIL.Image.new("RGB", (28, 28), "red").save(file, "PNG")
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


def test_prompts_with_images_are_opened_one_at_a_time_and_texts_pass_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(Image.open)
    monkeypatch.setattr(Image, "open", gate)
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(server.post, CHAT, seeing(image())) for _ in range(4)]
        wait_until(lambda: gate.inside == 1 and server.service.queue.waiting == 4)
        assert server.ask("What is 37 + 85?")[0] == 200
        gate.open.set()
        assert [each.result()[0] for each in asked] == [200] * 4
    assert gate.most == 1


def test_images_that_wait_are_bounded_by_the_bytes_they_take(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    gate = Gate(Image.open)
    monkeypatch.setattr(Image, "open", gate)
    monkeypatch.setattr(admission_queue, "_WAITING_BYTES", 28 * 28 * 12 + 1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, CHAT, seeing(image()))
        wait_until(lambda: gate.inside == 1)
        status, body = server.post(CHAT, seeing(image()))
        assert (status, body["error"]["code"]) == (429, "queue_full")
        gate.open.set()
        assert first.result()[0] == 200


def test_counting_holds_up_no_chat_and_counts_as_waiting(monkeypatch: pytest.MonkeyPatch):
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
    with live_server(Settings(models=("demo",), limits=Limits(queue=3))) as server:
        found = server.service.registry.find("demo")
        gate = Gate(found.prompt)
        monkeypatch.setattr(found, "prompt", gate)
        with ThreadPoolExecutor() as pool:
            counts = [pool.submit(server.post, COUNT, body) for _ in range(2)]
            wait_until(lambda: server.service.queue.counting == 2 and gate.inside == 1)
            assert server.ask("What is 37 + 85?")[0] == 200
            counts.append(pool.submit(server.post, COUNT, body))
            wait_until(lambda: server.service.queue.counting == 3)
            status, refusal = server.post(COUNT, body)
            assert (status, refusal["error"]["type"]) == (429, "rate_limit_error")
            assert server.ask("What is 37 + 85?")[0] == 429
            gate.open.set()
            assert [each.result()[0] for each in counts] == [200] * 3
        assert gate.most == 1


def test_a_prompt_lets_go_of_its_images_once_it_is_made():
    made = preprocessing.Preprocessor(Settings()).open_images(seeing(image())["messages"])
    assert len(list(made)) == 1
    assert list(made) == [], "nothing holds the pixels any more"


class TestStreamsWhileAModelIsLoaded:
    """Their headers and pings come, and what goes wrong is an event that clients raise."""

    @pytest.fixture
    def gate(self, monkeypatch: pytest.MonkeyPatch) -> Gate:
        monkeypatch.setattr(sse, "HEADER_SECONDS", 0.01)
        monkeypatch.setattr(sse, "PING_SECONDS", 0.01)
        return Gate(Magistral.load)

    @pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/v1/completions"])
    def test_they_are_kept_alive_and_then_answered(self, gate: Gate, path: str):
        hello = [{"role": "user", "content": "What is 37 + 85?"}]
        asked = {"prompt": "Hi"} if path == "/v1/completions" else {"input": hello}
        limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
        body = asked | {"messages": hello, limit: 64}
        with loading(gate) as server:
            body |= {"stream": True, "model": "demo"}
            with httpx.stream("POST", server.url + path, json=body, timeout=60) as response:
                assert response.status_code == 200
                lines = response.iter_lines()
                assert any("ping" in line for line in lines)
                assert not gate.open.is_set()
                gate.open.set()
                kinds = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert kinds and "error" not in str(kinds[-1].keys())

    def test_a_load_that_fails_is_raised_by_the_clients(self, gate: Gate):
        def fail(*_: Any, **__: Any) -> Magistral:
            raise CheckpointError("the folder is gone.")

        gate._function = fail
        hello: Any = [{"role": "user", "content": "Hello"}]
        with (
            loading(gate) as server,
            openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as asking,
            anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as other,
        ):
            stream = asking.chat.completions.create(model="demo", messages=hello, stream=True)
            events = other.messages.create(model="demo", messages=hello, stream=True, max_tokens=9)
            gate.open.set()
            with pytest.raises(openai.APIError, match="the folder is gone"):
                list(stream)
            with pytest.raises(anthropic.APIError, match="the folder is gone"):
                list(events)

    def test_what_is_wrong_with_the_messages_is_a_status_all_the_same(
        self, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(sse, "HEADER_SECONDS", 60)
        with loading(gate) as server:
            body = seeing("data:image/png;base64,!") | {"stream": True}
            body["messages"] *= 40
            status, answer = server.post(CHAT, body)
            assert status == 400
            assert "--max-images" in answer["error"]["message"]

    def test_one_that_is_left_leaves_the_queue(self, gate: Gate):
        with loading(gate) as server:
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
            with httpx.stream("POST", server.url + CHAT, json=body, timeout=60):
                assert server.service.queue.waiting == 1
            wait_until(lambda: server.service.queue.waiting == 0)


@contextmanager
def loading(gate: Gate) -> Iterator[Server]:
    """A server that listens, while its model's load stands at the gate."""
    with live_server(Settings(models=("demo",)), gate, ready=False) as server:
        wait_until(lambda: gate.inside == 1)
        try:
            yield server
        finally:
            gate.open.set()
