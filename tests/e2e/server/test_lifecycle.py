"""A server over time: loading, idling, exchanging models, queueing, hanging up, ending."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx import LoadProgress, Magistral
from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.backend import mx
from magistral_mlx.cli.main import main
from magistral_mlx.errors import CheckpointError
from magistral_mlx.server.app import create_app
from magistral_mlx.server.openapi_examples import RED_CIRCLE
from magistral_mlx.server.settings import Limits, Settings
from tests.fake_hub import FakeHub
from tests.scripted import write_scripted_checkpoint
from tests.serving import CHAT, Server, live_server, wait_until, write_endless_checkpoint

SUM = "What is 37 + 85?"
CONTEXT = 16_384  # of the endless model, which it would fill


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_endless_checkpoint(tmp_path_factory.mktemp("models") / "endless"))


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "red"
    return str(write_scripted_checkpoint(folder, ["[/INST]", "Red", "</s>"], context=2048))


@pytest.fixture
def talker(endless: str) -> Iterator[Server]:
    """A server whose model never stops by itself."""
    with live_server(Settings(models=(endless,))) as running:
        yield running


def text_of(answer: tuple[int, Any]) -> str:
    status, body = answer
    assert status == 200, body
    return body["choices"][0]["message"]["content"]


def loaded(server: Server) -> list[str]:
    return [model["id"] for model in server.get("/v1/models")[1]["data"] if model["loaded"]]


class TestLoading:
    def test_a_server_is_alive_but_not_ready_while_its_model_loads(self):
        gate = threading.Event()

        def slowly(*args: Any, **options: Any) -> Magistral:
            gate.wait(60)
            return Magistral.load(*args, **options)

        with live_server(load=slowly, ready=False) as server:
            wait_until(lambda: answers(server, "/health"))
            status, body = server.get("/ready")
            assert (status, body["error"]["code"]) == (503, "unavailable")
            with ThreadPoolExecutor() as pool:  # what is asked meanwhile waits
                early = pool.submit(server.ask, SUM)
                wait_until(lambda: server.service.queue.waiting == 1)
                gate.set()
                assert text_of(early.result()) == "122"
            assert server.get("/ready")[0] == 200

    def test_a_model_that_cannot_be_loaded_again_is_told_to_whoever_asks(self):
        loads = iter([Magistral.load])

        def once(*args: Any, **options: Any) -> Magistral:
            for load in loads:
                return load(*args, **options)
            raise CheckpointError("the folder is gone.")

        with live_server(Settings(models=("demo",), keep_alive=0), once) as server:
            wait_until(lambda: loaded(server) == [])
            status, body = server.ask(SUM)
            assert status == 503
            assert "demo could not be loaded: the folder is gone." in body["error"]["message"]

    def test_where_its_files_are_is_not_told_to_clients(self, tmp_path: Path):
        folder = write_endless_checkpoint(tmp_path / "talker")

        def fail(*_: Any, **__: Any) -> Magistral:
            raise CheckpointError(f"{folder}/config.json is damaged.")

        with live_server(Settings(models=(str(folder),)), fail, ready=False) as server:
            _, body = server.ask(SUM)
            told = body["error"]["message"]
            assert told == "talker could not be loaded: talker/config.json is damaged."

    def test_nor_that_of_one_that_cannot_see(self, talker: Server, endless: str):
        image = {"type": "image_url", "image_url": {"url": RED_CIRCLE}}
        status, body = talker.post(CHAT, {"messages": [{"role": "user", "content": [image]}]})
        assert status == 400
        assert body["error"]["message"].startswith("this model is text-only")
        assert str(Path(endless).parent) not in body["error"]["message"]

    def test_options_of_the_server_reach_the_model(self, tmp_path: Path):
        options = LoadOptions(context=1024, kv="8/8", cache_dir=str(tmp_path))
        with live_server(Settings(models=("demo",), load=options)) as server:
            assert server.get("/v1/models")[1]["data"][0]["context_length"] == 1024
            assert text_of(server.ask(SUM)) == "122"
            resident = server.service.pool.resident
            assert resident is not None
            assert resident.plan.scheme.name == "8/8"
        assert list(tmp_path.iterdir()), "what was read is kept there"

    def test_a_draft_model_that_is_not_there_is_why_the_server_is_not_ready(self, tmp_path: Path):
        options = LoadOptions(draft=str(tmp_path / "nothing"))
        with live_server(Settings(models=("demo",), load=options), ready=False) as server:
            wait_until(lambda: server.service.load_error is not None)
            status, body = server.get("/ready")
        assert status == 503
        assert "nothing" in body["error"]["message"]

    def test_a_model_of_the_hub_is_downloaded_first_and_told_of(
        self, endless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        told: list[LoadProgress] = []
        with FakeHub({"someone/endless-4bit": Path(endless)}) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
            app = create_app(Settings(models=("someone/endless-4bit",)), on_progress=told.append)
        assert [model.id for model in app.state.service.models()] == ["someone/endless-4bit"]
        assert {progress.stage for progress in told} == {"download"}
        assert told[-1].fraction == 1


class TestKeepAlive:
    def test_an_idle_model_gives_its_memory_back_and_is_loaded_by_the_next_request(self):
        mx.clear_cache()
        before = mx.get_active_memory()
        with live_server(Settings(models=("demo",), keep_alive=0.3)) as server:
            assert text_of(server.ask(SUM)) == "122"
            wait_until(lambda: loaded(server) == [])
            assert mx.get_active_memory() <= before + 1_000_000
            assert server.get("/ready")[0] == 200
            assert text_of(server.ask(SUM)) == "122"
            assert server.metric("magistral_memory_bytes", kind="weights") > 5_000_000
        assert mx.get_active_memory() <= before + 1_000_000

    def test_a_model_that_is_answering_is_not_idle(self, endless: str):
        with live_server(Settings(models=(endless,), keep_alive=0.05)) as server:
            with server.streaming("Go") as chunks:
                for _ in range(60):
                    next(chunks)
                assert loaded(server) == ["endless"]
            wait_until(lambda: loaded(server) == [])

    def test_tokens_are_counted_without_loading_anything(self):
        with live_server(Settings(models=("demo",), keep_alive=0)) as server:
            wait_until(lambda: loaded(server) == [])
            body = {"model": "demo", "messages": [{"role": "user", "content": SUM}]}
            status, counted = server.post("/v1/messages/count_tokens", body)
            assert status == 200
            assert loaded(server) == []
            answer = server.post("/v1/messages", body | {"max_tokens": 1})[1]
            assert answer["usage"]["input_tokens"] == counted["input_tokens"]


class TestSeveralModels:
    def test_each_answers_by_its_name_and_one_is_in_memory_at_a_time(self, red: str):
        with live_server(Settings(models=("demo", red))) as server:
            assert [model["id"] for model in server.get("/v1/models")[1]["data"]] == ["demo", "red"]
            for _ in range(2):
                assert text_of(server.ask(SUM, model="demo")) == "122"
                assert loaded(server) == ["demo"]
                assert text_of(server.ask("What colour?", model="red")) == "Red"
                assert loaded(server) == ["red"]
            assert text_of(server.ask(SUM)) == "122", "the first is the one for no name"

    def test_an_unknown_one_is_a_404_with_the_names_that_there_are(self, server: Server):
        status, body = server.ask(SUM, model="gpt-5")
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert "'gpt-5'" in body["error"]["message"]
        assert "demo" in body["error"]["message"]

    def test_a_request_waits_for_the_answers_of_another_model(self, endless: str, red: str):
        with live_server(Settings(models=(endless, red))) as server, ThreadPoolExecutor() as pool:
            with server.streaming("Go", model="endless") as chunks:
                next(chunks)
                other = pool.submit(server.ask, "What colour?", model="red")
                wait_until(lambda: server.service.queue.waiting == 1)
                for _ in range(30):
                    next(chunks)
                assert loaded(server) == ["endless"]
                assert not other.done()
            assert text_of(other.result()) == "Red"

    def test_many_requests_for_both_are_all_answered(self, red: str):
        with live_server(Settings(models=("demo", red))) as server, ThreadPoolExecutor(8) as pool:
            asked = [
                pool.submit(server.ask, SUM, model=model) for model in ("demo", "red", "red") * 4
            ]
            answers = [text_of(each.result()) for each in asked]
        assert answers == ["122", "Red", "Red"] * 4


class TestQueue:
    def test_too_many_get_a_429_that_says_when_to_come_again(self, endless: str):
        settings = Settings(models=(endless,), limits=Limits(queue=1))
        gate = threading.Event()
        entered = threading.Event()

        def held(*args: Any, **options: Any) -> Magistral:
            entered.set()
            gate.wait(60)
            return Magistral.load(*args, **options)

        with live_server(settings, held, ready=False) as server, ThreadPoolExecutor() as pool:
            entered.wait(60)
            wait_until(lambda: answers(server, "/health"))
            first = pool.submit(server.ask, "Go", max_tokens=3)
            wait_until(lambda: server.service.queue.waiting == 1)
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            body = json.dumps({"messages": [{"role": "user", "content": "Go"}], "stream": True})
            connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
            refused = connection.getresponse()
            assert refused.status == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert json.loads(refused.read())["error"]["type"] == "rate_limit_error"
            connection.close()
            gate.set()
            assert text_of(first.result()) == " on on on"


class TestHangingUp:
    def test_a_stream_that_is_left_stops_the_answer(self, talker: Server):
        with talker.streaming("Go") as chunks:
            for _ in range(5):
                next(chunks)
        wait_until(lambda: talker.service.queue.running == 0)
        assert talker.metric("magistral_answers_total", reason="cancelled") == 1
        assert talker.metric("magistral_tokens_total", kind="answer") < CONTEXT // 2

    def test_an_answer_that_is_not_streamed_stops_too(self, talker: Server):
        connection = http.client.HTTPConnection("127.0.0.1", talker.port, timeout=60)
        body = json.dumps({"messages": [{"role": "user", "content": "Go"}]})
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        wait_until(lambda: talker.service.queue.running == 1)
        connection.close()
        wait_until(lambda: talker.service.queue.running == 0)
        assert talker.metric("magistral_tokens_total", kind="answer") < CONTEXT // 2

    def test_a_request_that_still_waits_leaves_the_queue(self, endless: str, red: str):
        with live_server(Settings(models=(endless, red))) as server:
            with server.streaming("Go", model="endless") as chunks:
                next(chunks)
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                body = {"model": "red", "messages": [{"role": "user", "content": "What?"}]}
                connection.request(
                    "POST", CHAT, json.dumps(body), {"Content-Type": "application/json"}
                )
                wait_until(lambda: server.service.queue.waiting == 1)
                connection.close()
                wait_until(lambda: server.service.queue.waiting == 0)
                next(chunks)
            assert loaded(server) == ["endless"], "nobody wants the other one any more"

    def test_the_time_limit_ends_an_answer_as_its_length_would(self, endless: str):
        settings = Settings(models=(endless,), limits=Limits(seconds=0.2))
        with live_server(settings) as server:
            status, body = server.ask("Go")
            assert status == 200
            assert body["choices"][0]["finish_reason"] == "length"
            assert body["usage"]["total_tokens"] < CONTEXT


class TestEnding:
    """The command as a process, and what its clients see when it is stopped."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_running_answer_is_finished_first(self, endless: str, number: int):
        with serve(endless, "--grace", "60s") as (process, port), stream(port, 150) as lines:
            first = next(lines)
            process.send_signal(number)
            wait_until(lambda: not listens(port))
            rest = [first, *lines]
            out, err = process.communicate(timeout=60)
        assert "".join(texts(rest)) == " on" * 150
        assert rest[-1] == "[DONE]"
        assert process.returncode == 0
        assert out == ""
        assert f"http://127.0.0.1:{port}/v1" in err
        assert "endless: 16,384 tokens of context" in err
        assert "Traceback" not in err

    def test_after_the_grace_period_streams_end_as_they_should(self, endless: str):
        with serve(endless, "--grace", "0s") as (process, port), stream(port) as lines:
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [first, *lines]
            assert process.wait(60) == 0
        assert rest[-1] == "[DONE]"
        reasons = [json.loads(line)["choices"][0]["finish_reason"] for line in rest[:-1]]
        assert reasons[-1] is not None

    def test_a_second_signal_stops_at_once(self, endless: str):
        with serve(endless, "--grace", "1h") as (process, port), stream(port) as lines:
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not listens(port))
            process.send_signal(signal.SIGTERM)
            rest = [first, *lines]
            assert process.wait(60) == 0
        assert rest[-1] == "[DONE]"


def test_a_signal_before_it_has_started_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        "magistral_mlx.server.launcher.create_app",
        lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM),
    )
    monkeypatch.setattr(sys, "argv", ["magistral-mlx", "serve", "demo", "--port", "0"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 143
    assert capsys.readouterr().err == "magistral-mlx: stopped before it had started.\n"
    assert signal.getsignal(signal.SIGTERM) is before


class TestMistakes:
    """Each is one clear line on stderr, and the exit status is 2."""

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["demo", "--host", "0.0.0.0"], "needs an API key"),
            (["demo", "--host", "no.such.host", "--api-key", "k"], "no address of this machine"),
            (["demo", "--host", "192.0.2.1", "--api-key", "k"], "no address of this machine"),
            (["demo", "--grace", "-1s"], "must be a duration"),
            (["demo", "--cors", "https://chat.example/"], "without a path"),
            (["demo", "--cors", "chat.example"], "scheme and host"),
            (["demo", "--allow-host", "http://my-mac.local"], "without http://"),
            (["demo", "--allow-host", "my-mac.local:8080"], "without http:// or a port"),
            (["demo", "--keep-alive", "soon"], "30s, 10m, 1.5h or never"),
            (["demo", "--max-body", "many"], "must be a size"),
            (["demo", "--max-queue", "0"], "1 or more"),
            (["no-such-model"], "no-such-model"),
            (["demo", "demo"], "name each once"),
            (["demo", "--traces", "/dev/null/x"], "traces cannot be written"),
            (["demo", "--context", "99999999"], "at most 8,192 tokens"),
        ],
    )
    def test_each_is_said_in_a_line(
        self,
        words: list[str],
        said: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        assert said in one_line(monkeypatch, capsys, *words, "--port", "0")

    def test_a_port_that_is_taken_is_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = str(other.getsockname()[1])
            said = one_line(monkeypatch, capsys, "demo", "--port", port)
        assert f"port {port} of 127.0.0.1 is taken" in said

    def test_a_model_that_breaks_after_it_was_found_ends_the_server(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        folder = write_endless_checkpoint(tmp_path / "broken")

        def break_it(*_: object) -> None:
            (weights,) = folder.glob("*.safetensors")
            weights.write_bytes(b"")

        monkeypatch.setattr("magistral_mlx.cli.serve._tell", break_it)
        said = one_line(monkeypatch, capsys, str(folder), "--port", "0")
        assert "broken could not be loaded" in said


def one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """What `serve` says of a mistake, which is a line, before it exits with status 2."""
    monkeypatch.setattr(sys, "argv", ["magistral-mlx", "serve", *words])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


COMMAND = [sys.executable, "-m", "magistral_mlx.cli.main", "serve"]


@contextmanager
def serve(*words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command with a port of its own, once its model is loaded; killed if it is left over."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [*COMMAND, *words, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        wait_until(lambda: process.poll() is not None or listens(port, "/ready"))
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield process, port
    finally:
        process.kill()
        process.communicate()


@contextmanager
def stream(port: int, max_tokens: int | None = None) -> Iterator[Iterator[str]]:
    """The data lines of a streamed answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"messages": [{"role": "user", "content": "Go"}], "stream": True, "temperature": 0}
    body |= {"max_tokens": max_tokens}
    connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    lines = (line.decode().strip() for line in iter(response.readline, b""))
    yield (line[6:] for line in lines if line.startswith("data: "))
    connection.close()


def texts(lines: list[str]) -> Iterator[str]:
    for line in lines:
        if line != "[DONE]":
            for choice in json.loads(line)["choices"]:
                yield choice["delta"].get("content") or ""


def listens(port: int, path: str = "/health") -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def answers(server: Server, path: str) -> bool:
    return listens(server.port, path)
