"""Adapters by name in a running server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from magistral_mlx.api.load_options import LoadOptions
from magistral_mlx.server.settings import Settings
from tests.adapter_files import write_peft_adapter
from tests.serving import Server, live_server

DEMO_SHAPES = {"self_attn.q_proj": (256, 192), "self_attn.o_proj": (192, 256)}
LOAD, DROP = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
SUM = "What is 37 + 85?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two", "three")):
        write_peft_adapter(root / name, seed=seed, size=3, targets=DEMO_SHAPES)
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    adapters = {"one": folder / "one", "two": folder / "two"}
    load = LoadOptions(wire=False, adapters=adapters, context=2048)
    with live_server(Settings(models=("demo",), port=0, load=load, load_adapters=True)) as found:
        yield found


def answer(server: Server, model: str) -> str:
    status, body = server.ask(SUM, model=model, max_tokens=12)
    assert status == 200, body
    assert body["model"] == (model if model.startswith("demo") else f"demo:{model}")
    message = body["choices"][0]["message"]
    return f"{message.get('reasoning_content')}|{message['content']}"


def test_models_and_their_adapters_are_listed(server: Server) -> None:
    listed = server.get("/v1/models")[1]["data"]
    assert [(one["id"], one["parent"]) for one in listed[:3]] == [
        ("demo", None),
        ("demo:one", "demo"),
        ("demo:two", "demo"),
    ]
    assert server.get("/v1/models/demo:two")[1]["parent"] == "demo"


def test_requests_at_once_get_the_adapter_that_they_name(server: Server) -> None:
    names = ["demo", "demo:one", "demo:two", "two", "demo:one", "demo"]
    alone = {name: answer(server, name) for name in dict.fromkeys(names)}
    assert alone["demo:two"] == alone["two"]
    assert len(set(alone.values())) == 3
    with ThreadPoolExecutor(len(names)) as pool:
        together = list(pool.map(lambda name: answer(server, name), names))
    assert together == [alone[name] for name in names]


def test_an_adapter_comes_and_goes_without_the_model(server: Server, folder: Path) -> None:
    resident = server.service.pool.resident
    body = {"lora_name": "third", "lora_path": str(folder / "three")}
    assert server.post(LOAD, body) == (200, {"model": "demo:third", "loaded": True})
    third = answer(server, "demo:third")
    assert third != answer(server, "demo")
    assert server.post(LOAD, body)[0] == 400
    assert server.post(DROP, {"lora_name": "third"})[0] == 200
    status, error = server.ask(SUM, model="demo:third")
    assert status == 404
    assert "Known: demo, demo:one, demo:two" in error["error"]["message"]
    assert server.post(DROP, {"lora_name": "third"})[0] == 404
    assert server.service.pool.resident is resident


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"lora_name": "a", "lora_path": "/nowhere"}, 400),
        ({"lora_name": "a:b", "lora_path": "/nowhere"}, 400),
        ({"lora_name": "base", "lora_path": "/nowhere"}, 400),
        ({"lora_name": "a", "lora_path": "/"}, 400),
        ({"lora_name": "a", "lora_path": ""}, 400),
        ({"lora_name": "a", "lora_path": "/a" * 3000}, 400),
        ({"lora_name": "a", "lora_path": "/a\0"}, 400),
        ({"lora_name": "a"}, 400),
        ({"lora_name": "a", "lora_path": "/nowhere", "model": "none"}, 404),
    ],
)
def test_what_cannot_be_loaded(server: Server, body: dict[str, str], status: int) -> None:
    found, error = server.post(LOAD, body)
    assert found == status, error
    assert "\n" not in error["error"]["message"]


def test_clients_load_nothing_unless_they_may(folder: Path) -> None:
    with live_server(Settings(models=("demo",), port=0)) as closed:
        body = {"lora_name": "one", "lora_path": str(folder / "one")}
        assert closed.post(LOAD, body)[0] == 404
        assert closed.post(DROP, {"lora_name": "one"})[0] == 404
