"""`magistral-mlx bench --against URL`: servers with OpenAI's API beside this runtime."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx.bench.remote import RemoteServer
from magistral_mlx.errors import BenchmarkError
from tests.serving import Server

DEMO = Path(__file__).parents[3] / "magistral_mlx/demo/checkpoint"


def bench(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "magistral_mlx", "bench", "demo", *arguments]
    environment = os.environ | {"MAGISTRAL_MLX_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_server_is_measured_beside_ours(server: Server, tmp_path: Path):
    options = ("-c", "40", "-n", "6", "--rounds", "1", "--json")
    done = bench(tmp_path, *options, "--against", f"{server.url}/v1=demo")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["left_out"] == {}
    ours, theirs = facts["speeds"]
    assert theirs["label"] == f"127.0.0.1:{server.port}"
    assert theirs["decode"]["median"] > 0 and theirs["first"]["median"] > 0
    assert theirs["peak"] is None and theirs["share_of_limit"] is None
    assert theirs["ours_over_theirs"]["median"] > 0 and ours["peak"] > 0
    assert f"{theirs['label']} at 40: prefill" in facts["line"]


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (("--against", "http://127.0.0.1:9/v1"), "http://127.0.0.1:9/v1 does not answer ("),
        (("--against", "{url}/v1=other"), "{url}/v1 has no model other; it lists "),
        (("--against", "{url}/nowhere"), "{url}/nowhere/models lists no models (status 404)"),
        (("--against", "{url}/v1", "--api-key-env", "NO_KEY"), "api_key_env is 'NO_KEY', and no"),
    ],
)
def test_a_server_that_cannot_be_measured_is_named_first(
    arguments: tuple[str, ...], refusal: str, server: Server, tmp_path: Path
):
    done = bench(tmp_path, *(word.format(url=server.url) for word in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("magistral-mlx: " + refusal.format(url=server.url))
    assert done.stderr.count("\n") == 1


class _ChatOnly(BaseHTTPRequestHandler):
    """Like Mistral's API: a key, chat alone, no field that it does not know."""

    tokens = 5
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "Bearer secret":
            self._answer(401, {"error": "no key"})
        else:
            self._answer(200, {"data": [{"id": "magistral-medium"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.path.endswith("/chat/completions"):
            self._answer(404, {})
        elif "ignore_eos" in body:
            self._answer(422, {"detail": "extra field ignore_eos"})
        else:
            self.asked.append(body)
            self._stream()

    def _stream(self) -> None:
        self.send_response(200)
        self.end_headers()
        thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}]
        for number in range(self.tokens):
            delta = {"content": "b" if number else thinking}
            self._send({"choices": [{"delta": delta}]})
        usage = {"prompt_tokens": 31, "completion_tokens": self.tokens}
        self._send({"choices": [{"delta": {}}], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@contextmanager
def chat_only(tokens: int = 5) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []
    handler = type("Handler", (_ChatOnly,), {"asked": asked, "tokens": tokens})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/v1", asked
        http.shutdown()


def test_a_server_with_chat_alone_is_asked_for_that():
    with chat_only() as (url, asked):
        remote = RemoteServer(url, key="secret")
        remote.load(str(DEMO))
        answers = [remote.generate(prompt=20, count=5) for _ in range(2)]
    assert [answer["prompt"] for answer in answers] == [31, 31]
    assert [len(answer["steps"]) for answer in answers] == [4, 4]
    texts = [body["messages"][0]["content"] for body in asked]
    assert len(set(texts)) == 2 and all(len(text.split()) == 20 for text in texts)
    assert asked[0]["max_tokens"] == 5 and asked[0]["model"] == "magistral-medium"


def test_an_answer_too_short_to_be_measured_is_an_error():
    with chat_only(tokens=1) as (url, _):
        remote = RemoteServer(url, key="secret")
        remote.load(str(DEMO))
        with pytest.raises(BenchmarkError, match="it ended after 1 of 5 tokens"):
            remote.generate(prompt=20, count=5)


def test_a_key_that_is_missing_is_asked_for():
    with (
        chat_only() as (url, _),
        pytest.raises(BenchmarkError, match=r"wants an API key.*--api-key-env"),
    ):
        RemoteServer(url).check()
