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

from magistral_mlx.bench.prompts import WordPrompts
from magistral_mlx.bench.remote import RemoteServer
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import BenchmarkError
from tests.command_line import run
from tests.serving import Server

DEMO = Path(__file__).parents[3] / "magistral_mlx/demo/checkpoint"


def bench(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "magistral_mlx", "bench", "demo", *arguments]
    environment = os.environ | {"MAGISTRAL_MLX_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_server_is_measured_beside_ours(server: Server, tmp_path: Path):
    options = ("-c", "40", "-n", "6", "--rounds", "1", "--parallel", "1, 3", "--json")
    done = bench(tmp_path, *options, "--against", f"{server.url}/v1=demo")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["left_out"] == {}
    ours, theirs = facts["speeds"]
    label = f"127.0.0.1:{server.port}"
    assert theirs["label"] == label
    assert theirs["decode"]["median"] > 0 and theirs["first"]["median"] > 0
    assert theirs["peak"] is None and theirs["share_of_limit"] is None
    assert theirs["ours_over_theirs"]["median"] > 0 and ours["peak"] > 0
    assert f"{label} at 40: prefill" in facts["line"]
    assert theirs["reported"] and not ours["reported"]
    found = [(speed["label"], speed["requests"]) for speed in facts["parallel"]]
    assert found == [("magistral-mlx", 1), (label, 1), ("magistral-mlx", 3), (label, 3)]
    assert [len(speed["first"]["values"]) for speed in facts["parallel"]] == [1, 1, 3, 3]
    assert all(speed["rate"]["median"] > 0 for speed in facts["parallel"])
    assert f"{label} with 3 at once at 40: " in facts["line"]


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


@pytest.mark.parametrize("numbers", ["2,many", "0", "2,,4", "-1", "999"])
def test_a_number_of_requests_that_is_none_is_refused(numbers: str):
    refusal = run("bench", "demo", f"--parallel={numbers}").refusal
    assert refusal.startswith(f"--parallel is '{numbers}'; give numbers of requests from 1 to 256")


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
        answers = [remote.generate(text, count=5) for text in (" one two", " three")]
    assert [answer["prompt"] for answer in answers] == [31, 31]
    assert [len(answer["steps"]) for answer in answers] == [4, 4]
    assert [answer["reported"] for answer in answers] == [None, None]
    assert [body["messages"][0]["content"] for body in asked] == [" one two", " three"]
    assert asked[0]["max_tokens"] == 5 and asked[0]["model"] == "magistral-medium"


def test_an_answer_too_short_to_be_measured_is_an_error():
    with chat_only(tokens=1) as (url, _):
        remote = RemoteServer(url, key="secret")
        remote.load(str(DEMO))
        with pytest.raises(BenchmarkError, match="it ended after 1 of 5 tokens"):
            remote.generate(" one two", count=5)


def test_a_key_that_is_missing_is_asked_for():
    with (
        chat_only() as (url, _),
        pytest.raises(BenchmarkError, match=r"wants an API key.*--api-key-env"),
    ):
        RemoteServer(url).check()


TEXT = " several words make a prompt"
USAGE = {"prompt_tokens": 40, "completion_tokens": 6}


def chunk(text: str, name: str = "text", **more: Any) -> dict[str, Any]:
    return {"choices": [{name: text} if name == "text" else {"delta": {name: text}}], **more}


# What servers send for six tokens: pieces, then what they count. Taken from their documentation
# and sources: LM Studio and Ollama end with usage alone, llama-server adds timings, vLLM may send
# several tokens at once and tells what was cached, Mistral sends usage with the last piece.
STREAMS: dict[str, list[dict[str, Any]]] = {
    "LM Studio": [*[chunk(" a")] * 6, {"choices": [], "usage": USAGE, "stats": {}}],
    "Ollama": [
        *[chunk(" a", "reasoning")] * 5,
        chunk(" b", "content"),
        {"choices": [], "usage": USAGE},
    ],
    "llama-server": [
        *[chunk(" a", "reasoning_content")] * 6,
        {
            "choices": [],
            "usage": USAGE,
            "timings": {"prompt_per_second": 900.5, "predicted_per_second": 31.25, "cache_n": 0},
        },
    ],
    "vLLM": [
        *[chunk(" a b c")] * 2,
        {"choices": [], "usage": USAGE | {"prompt_tokens_details": {"cached_tokens": 16}}},
    ],
    "Mistral": [*[chunk(" a", "content")] * 5, chunk(" a", "content", usage=USAGE)],
    "one piece": [chunk(" a b c d e f", usage=USAGE)],
    "no usage": [chunk(" a b"), chunk(" c d e"), chunk(" f")],
}


class _Scripted(BaseHTTPRequestHandler):
    """Sends a stream, whatever it is asked."""

    events: list[dict[str, Any]]
    waiting: threading.Barrier

    def do_GET(self) -> None:
        self._send_all([json.dumps({"data": [{"id": "any"}]}).encode()])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.waiting.wait()
        self._send_all([f"data: {json.dumps(event)}\n\n".encode() for event in self.events])

    def _send_all(self, parts: list[bytes]) -> None:
        self.send_response(200)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@contextmanager
def scripted(name: str, at_once: int = 1) -> Iterator[RemoteServer]:
    """A server that answers when so many requests are there."""
    handler = type(
        "Handler",
        (_Scripted,),
        {"events": STREAMS[name], "waiting": threading.Barrier(at_once, timeout=60)},
    )
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        remote = RemoteServer(f"http://127.0.0.1:{http.server_port}/v1")
        remote.load(str(DEMO))
        yield remote
        http.shutdown()


def test_an_answer_in_one_piece_is_an_error():
    with scripted("one piece") as remote, pytest.raises(BenchmarkError, match="6 tokens at once"):
        remote.generate(TEXT, count=6)


@pytest.mark.parametrize("name", sorted(set(STREAMS) - {"one piece"}))
def test_each_servers_counts_are_read(name: str):
    with scripted(name) as remote:
        answer = remote.generate(TEXT, count=6)
    assert len(answer["steps"]) == 5
    own = len(Tokenizer.load(DEMO).encode(TEXT)) + 1
    assert answer["prompt"] == {"vLLM": 24, "no usage": own}.get(name, 40)
    assert answer["reported"] == ((900.5, 31.25) if name == "llama-server" else None)


def test_requests_at_once_are_sent_at_once():
    with scripted("vLLM", at_once=5) as remote:
        answer = remote.together([TEXT] * 5, count=6)
    assert answer["tokens"] == 30 and len(answer["first"]) == 5
    assert all(0 < first <= answer["seconds"] for first in answer["first"])


def test_ours_and_a_server_get_the_same_words():
    prompts, others = WordPrompts(DEMO), WordPrompts(DEMO)
    text = prompts.text(30, seed=1)
    assert len(text.split()) == 30 and text == prompts.text(30, seed=1)
    assert len({text, prompts.text(30, seed=2), others.text(30, seed=1)}) == 3
    ids = prompts.tokens(text)
    assert Tokenizer.load(DEMO).decode(ids[1:]) == text and ids[0] == 1
