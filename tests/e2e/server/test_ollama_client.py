"""Ollama's own Python client against the server."""

from __future__ import annotations

import base64
import json
import re
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import ollama
import pytest
from httpx import Client as HTTPClient

from magistral_mlx.server.ollama.schemas import OllamaChatRequest, OllamaGenerateRequest
from magistral_mlx.server.settings import Settings
from tests.scripted import write_scripted_checkpoint
from tests.serving import Server, live_server, wait_until

SUM = {"role": "user", "content": "What is 37 + 85?"}
GREEDY = {"temperature": 0, "num_predict": 100, "num_ctx": 2048, "num_thread": 2}
SEES = {"role": "user", "content": "What is in the picture?", "images": ["examples/circle.png"]}


def client_of(server: Server) -> ollama.Client:
    """A client that no variable of the environment leads elsewhere."""
    return ollama.Client(host=server.url, trust_env=False)


@pytest.fixture(scope="module")
def client(server: Server) -> ollama.Client:
    return client_of(server)


def test_models_are_listed_with_what_they_can(client: ollama.Client):
    (listed,) = client.list().models
    assert listed.model == "demo:latest"
    assert listed.size and listed.digest and listed.modified_at
    assert listed.details and listed.details.parameter_size == "2.8M"
    shown = client.show("demo:latest")
    assert shown.capabilities == ["completion", "tools", "vision", "thinking"]
    assert shown.modelinfo and shown.modelinfo["mistral3.context_length"] == 8192
    (running,) = client.ps().models
    assert running.context_length == 8192


def test_an_answer_comes_whole(client: ollama.Client):
    answer = client.chat("demo", [SUM], options=GREEDY)
    assert (answer.message.content, answer.done_reason) == ("122", "stop")
    assert answer.message.thinking and "7+5" in answer.message.thinking
    assert answer.eval_count and answer.prompt_eval_count and answer.total_duration


def test_an_answer_comes_in_lines(client: ollama.Client):
    lines = list(client.chat("demo", [SUM], options=GREEDY, stream=True))
    assert "".join(line.message.content or "" for line in lines) == "122"
    assert len([line for line in lines if line.message.thinking]) > 1
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].done_reason == "stop" and lines[-1].eval_count


def test_lines_are_marked_as_such(server: Server):
    body = json.dumps({"model": "demo", "messages": [SUM], "options": GREEDY}).encode()
    request = urllib.request.Request(
        server.url + "/api/chat", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["Content-Type"] == "application/x-ndjson"
        assert all(json.loads(line)["model"] == "demo" for line in response)


def test_thinking_is_on_off_or_short(client: ollama.Client):
    assert client.chat("demo", [SUM], options=GREEDY, think=True).message.thinking
    assert client.chat("demo", [SUM], options=GREEDY, think="low").message.thinking
    short = GREEDY | {"num_predict": 5}
    assert not client.chat("demo", [SUM], options=short, think=False).message.thinking


def test_an_image_is_seen(client: ollama.Client):
    assert client.chat("demo", [SEES], options=GREEDY).message.content == "A red circle."
    data = base64.b64encode(Path("examples/circle.png").read_bytes()).decode()
    asked: dict[str, Any] = {"prompt": "What is in the picture?", "options": GREEDY}
    assert client.generate("demo", images=[data], **asked).response == "A red circle."


def test_the_answer_is_held_to_a_format(client: ollama.Client):
    for schema, form in (({"enum": ["a", "b"]}, '"[ab]"'), ({"const": 7}, "7")):
        answer = client.chat("demo", [SUM], format=schema, options=GREEDY).message.content
        assert answer and re.fullmatch(form, answer)
    answer = client.generate("demo", "What is 37 + 85?", format="json", options=GREEDY).response
    assert answer and answer.startswith("{")


def test_a_prompt_is_answered_or_continued(client: ollama.Client):
    answer = client.generate("demo", "What is 37 + 85?", options=GREEDY)
    assert answer.response == "122" and answer.thinking
    lines = list(client.generate("demo", "What is 37 + 85?", options=GREEDY, stream=True))
    assert "".join(line.response or "" for line in lines) == "122"
    with_system = client.generate("demo", "What is 37 + 85?", system="Count.", options=GREEDY)
    assert with_system.prompt_eval_count != answer.prompt_eval_count
    raw = client.generate("demo", "2 + 2 =", raw=True, options=GREEDY | {"num_predict": 4})
    assert raw.response and not raw.thinking and raw.done_reason == "length"


def test_log_probabilities_come_if_asked_for(client: ollama.Client):
    answer = client.chat("demo", [SUM], options=GREEDY, logprobs=True, top_logprobs=2)
    assert answer.logprobs and len(answer.logprobs[0].top_logprobs or ()) == 2
    assert "122" in "".join(token.token for token in answer.logprobs)


def test_options_are_kept_to(client: ollama.Client):
    warm = {"temperature": 1.5, "seed": 7, "num_predict": 40}
    first, second = (client.chat("demo", [SUM], options=warm).message for _ in range(2))
    assert (first.content, first.thinking) == (second.content, second.thinking)
    short = client.chat("demo", [SUM], options=GREEDY | {"num_predict": 3})
    assert (short.eval_count, short.done_reason) == (3, "length")
    assert client.chat("demo", [SUM], options=GREEDY | {"stop": ["12"]}).message.content == ""
    endless = client.chat("demo", [SUM], options=GREEDY | {"num_predict": -1})
    assert endless.message.content == "122"


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Calls f({}); to the result it says "Zero"."""
    folder = write_scripted_checkpoint(
        tmp_path_factory.mktemp("server") / "caller",
        ["[/INST]", "[TOOL_CALLS]", "f", "[ARGS]", "{\n }", "</s>"],
        ["[/TOOL_RESULTS]", "Zero", "</s>"],
    )
    with live_server(Settings(models=(str(folder),))) as server:
        yield server


def f() -> int:
    """Count."""
    return 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(caller: Server, stream: bool):
    client = client_of(caller)
    messages: list[Any] = [{"role": "user", "content": "Count."}]
    if stream:
        lines = list(client.chat("caller", messages, tools=[f], stream=True))
        (message,) = [line.message for line in lines if line.message.tool_calls]
    else:
        message = client.chat("caller", messages, tools=[f]).message
    (call,) = message.tool_calls or ()
    assert (call.function.name, call.function.arguments) == ("f", {})
    result = {"role": "tool", "tool_name": "f", "content": str(f(**call.function.arguments))}
    answer = client.chat("caller", [*messages, message, result], tools=[f])
    assert answer.message.content == "Zero"


def test_results_find_their_calls_by_name(caller: Server):
    calls = [{"function": {"name": name, "arguments": {"a": 1}}} for name in ("f", "g", "f")]
    messages = [
        {"role": "user", "content": "Count."},
        {"role": "assistant", "tool_calls": calls},
        *({"role": "tool", "tool_name": name, "content": name} for name in ("g", "f", "f")),
    ]
    assert client_of(caller).chat("caller", messages).message.content == "Zero"


def test_keep_alive_decides_how_long_the_model_stays(server: Server):
    client = client_of(server)
    assert client.generate("demo", "", keep_alive="5m").done_reason == "load"
    (running,) = client.ps().models
    assert running.expires_at and running.expires_at < datetime.now(UTC) + timedelta(minutes=6)
    assert client.chat("demo", [], keep_alive=0).done_reason == "unload"
    wait_until(lambda: not client.ps().models)
    assert client.chat("demo", [SUM], options=GREEDY, keep_alive=-1).message.content == "122"
    assert client.ps().models


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_null_means_what_leaving_out_means(server: Server, path: str):
    """As Ollama's Go client sends what was not set."""
    request = OllamaChatRequest if path == "/api/chat" else OllamaGenerateRequest
    nulls = dict.fromkeys(name for name in request.model_fields if name != "model")
    status, loaded = server.post(path, nulls | {"model": "demo"})
    assert (status, loaded["done_reason"]) == (200, "load")
    asked = {"model": "demo", "prompt": "Hi", "messages": [SUM], "options": {"num_predict": 2}}
    status, lines = server.post(path, nulls | asked)
    assert status == 200 and json.loads(lines.splitlines()[-1])["done"]


def test_a_tool_may_hold_nulls(server: Server):
    schemas: list[Any] = [
        {"type": "object", "properties": None, "required": None},
        {"type": "object", "properties": {"a": {"type": "string", "enum": None}}},
        {"type": "object", "properties": {"enum": {"type": "string", "enum": None}}},
        None,
    ]
    tools = [
        {"type": kind, "function": {"name": name, "description": None, "parameters": schema}}
        for name, kind, schema in zip("fghi", ("function", None, "", None), schemas, strict=True)
    ]
    body = {"model": "demo", "messages": [SUM], "tools": tools, "options": {"num_predict": 2}}
    assert server.post("/api/chat", body | {"stream": False})[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/v1/models/demo", "/version"],
)
def test_what_can_be_got_can_be_probed(server: Server, path: str):
    with HTTPClient(trust_env=False) as client:
        got, probed = (client.request(how, server.url + path) for how in ("GET", "HEAD"))
    assert probed.status_code == got.status_code == 200 and not probed.content
    assert probed.headers["Content-Type"] == got.headers["Content-Type"]


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/api/chat", {"model": "none", "messages": [SUM]}, 404, "there is no model 'none'"),
        ("/api/chat", {"messages": [SUM]}, 400, "model"),
        ("/api/chat", {"model": "demo", "messages": [{"role": "x"}]}, 400, "messages[0].role"),
        ("/api/generate", {"model": "demo", "prompt": "a", "suffix": "b"}, 400, "suffix"),
        ("/api/generate", {"model": "demo", "prompt": "a", "context": [1]}, 400, "/api/chat"),
        ("/api/generate", {"model": "demo", "prompt": "a", "template": "b"}, 400, "template"),
        ("/api/chat", {"model": "demo", "messages": [SUM], "keep_alive": "5x"}, 400, "duration"),
        ("/api/chat", {"model": "demo", "options": {"mirostat": 1}}, 400, "mirostat"),
        ("/api/chat", {"model": "demo", "messages": [SUM], "format": "xml"}, 400, "format"),
        ("/api/embed", {"model": "demo", "input": "a"}, 400, "it has no embeddings"),
        ("/api/create", {"model": "new", "from": "demo"}, 400, "models are not changed"),
        ("/api/pull", {"model": "none"}, 404, "there is no model 'none'"),
        ("/api/unheard-of", {}, 404, "nothing at this address"),
    ],
)
def test_errors_have_ollamas_form(server: Server, path: str, body: Any, status: int, told: str):
    code, answer = server.post(path, body)
    assert code == status
    assert list(answer) == ["error"] and told in answer["error"]


def test_a_failure_within_a_stream_is_its_last_line(server: Server, monkeypatch: Any):
    from magistral_mlx.server.ollama.format import OllamaFormatter

    def fail(*_: Any) -> Iterator[Any]:
        raise ValueError("no")

    monkeypatch.setattr(OllamaFormatter, "_lines", fail)
    with pytest.raises(ollama.ResponseError, match="internal error"):
        list(client_of(server).chat("demo", [SUM], options=GREEDY, stream=True))


def test_a_reader_that_leaves_stops_its_answer(server: Server):
    body = {"model": "demo", "messages": [SUM], "options": {"num_predict": 5000}, "think": False}
    with (
        HTTPClient(trust_env=False) as client,
        client.stream("POST", server.url + "/api/chat", json=body) as response,
    ):
        next(response.iter_lines())
    wait_until(lambda: server.service.queue.running == 0)


def test_any_name_answers_where_that_is_asked_for(server: Server):
    assert server.ask("Hi", model="gpt-4o", max_tokens=2)[0] == 404
    with live_server(Settings(models=("demo",), any_model=True)) as open_server:
        status, body = open_server.ask("Hi", model="gpt-4o", max_tokens=2)
        assert (status, body["model"]) == (200, "demo")
        client = client_of(open_server)
        assert client.chat("llama3.2", [SUM], options=GREEDY).message.content == "122"
