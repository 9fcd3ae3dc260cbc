"""GGUF models on the hub whose headers are read before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from magistral_convert import convert
from magistral_convert.source import read_headers
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.errors import CheckpointError, UnsupportedModel
from magistral_mlx.hub import remote_headers
from magistral_mlx.hub.gguf import label_of
from magistral_mlx.library import locate
from tests import command_line
from tests.fake_hub import FakeHub
from tests.gguf_files import everything, write_mmproj, write_text_gguf
from tests.unit.test_gguf_checkpoint import split
from tests.unit.test_library_gguf import CONFIG, WEIGHTS, model


def publish(hub: FakeHub, file: Path) -> str:
    """Put a GGUF file, made longer than any first piece of it, on the hub beside small files."""
    with file.open("r+b") as stream:
        stream.truncate(3 << 20)
    (file.parent / "tekken.json").write_text("{}")
    hub.add("someone/Other-GGUF", file.parent)
    hub.requests.clear()
    return f"someone/Other-GGUF:{label_of(file.name)}"


def called(file: Path, architecture: bytes) -> Path:
    """The same file of an architecture whose name is as long."""
    file.write_bytes(file.read_bytes().replace(b"mistral3", architecture))
    return file


def damaged(file: Path) -> Path:
    file.write_bytes(b"GGUF" + b"\xff" * 1000)
    return file


def emptied(file: Path) -> Path:
    file.write_bytes(b"")
    return file


REFUSED = {
    "architecture": (
        lambda file: called(model(file), b"nemotron"),
        "someone/Other-GGUF/other-Q4_0.gguf holds a model of the architecture 'nemotron'",
    ),
    "another": (lambda file: called(model(file), b"deepseek"), "architecture 'deepseek'"),
    "tokenizer": (
        lambda file: model(file, **{"tokenizer.ggml.pre": "qwen2"}),
        "holds a model with the tokenizer 'qwen2'",
    ),
    "experts": (
        lambda file: model(file, **{"mistral3.expert_count": 8}),
        "holds a model with a mixture of experts",
    ),
    "type": (lambda file: model(file, "TQ2_0"), "as TQ2_0, which this runtime does not read"),
    "damage": (lambda file: damaged(model(file)), "is a GGUF file of version 4294967295"),
    "no GGUF": (
        lambda file: emptied(model(file)),
        "is damaged or no GGUF file: it does not begin like a GGUF file",
    ),
    "endless header": (
        lambda file: model(file, **{"general.description": "x" * (2 << 20)}),
        "its header does not end within 1 MiB",
    ),
    "tower": (
        lambda file: with_tower(model(file), **{"clip.projector_type": "gemma3"}),
        "Other-GGUF/mmproj-F16.gguf holds a vision tower of the type 'gemma3'",
    ),
}


def with_tower(file: Path, **metadata: Any) -> Path:
    write_mmproj(file.with_name("mmproj-F16.gguf"), CONFIG, WEIGHTS, everything("F16"), **metadata)
    return file


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_run_is_refused_by_its_header(
    hub: FakeHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
):
    monkeypatch.setattr(remote_headers, "_MOST_GGUF_BYTES", 1 << 20)
    make, told = REFUSED[why]
    name = publish(hub, make(tmp_path / "other/other-Q4_0.gguf"))
    for ask in (locate, convert):
        with pytest.raises(CheckpointError) as error:
            ask(name)
        assert told in str(error.value) and "\n" not in str(error.value)
    assert all(request.range for request in hub.requests if request.sent)
    assert max(request.sent for request in hub.requests) <= 1 << 20
    assert not list(home.rglob("*.*"))


@pytest.mark.parametrize("words", [("generate", "Hi", "--model"), ("plan",), ("convert",)])
def test_a_refusal_is_one_line(hub: FakeHub, home: Path, tmp_path: Path, words: tuple[str, ...]):
    name = publish(hub, called(model(tmp_path / "other/other-Q8_0.gguf", "Q8_0"), b"nemotron"))
    refusal = command_line.run(*words, name).refusal
    assert "of the architecture 'nemotron'. This runtime runs" in refusal
    assert not list(home.rglob("*.*"))


def test_a_type_in_a_later_file_of_a_split_model_is_refused(
    hub: FakeHub, home: Path, tmp_path: Path
):
    def kind_of(name: str) -> str:
        return "TQ2_0" if name == "blk.0.ffn_down.weight" else everything("Q8_0")(name)

    path = tmp_path / "other/other-Q8_0.gguf"
    path.parent.mkdir()
    write_text_gguf(path, CONFIG, WEIGHTS, kind_of)
    split(path, 3)
    hub.add("someone/Other-GGUF", path.parent)
    with pytest.raises(UnsupportedModel, match=r"of-00003.gguf stores blk.0.ffn_down.weight as TQ"):
        locate("someone/Other-GGUF:Q8_0")
    assert not list(home.rglob("*.*"))


def test_the_tower_of_another_model_is_left_out(hub: FakeHub, tmp_path: Path):
    metadata = {"clip.vision.projection_dim": 999}
    file = with_tower(model(tmp_path / "other/other-Q4_0.gguf"), **metadata)
    hub.add("someone/Other-GGUF", file.parent)
    assert read_headers("someone/Other-GGUF:Q4_0").config.vision is None
    assert Checkpoint.open(locate("someone/Other-GGUF:Q4_0")).config.vision is None


def test_a_header_longer_than_its_first_piece_is_read_on(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote_headers, "_FIRST_GGUF_BYTES", 64)
    name = publish(hub, with_tower(model(tmp_path / "other/other-Q8_0.gguf", "Q8_0")))
    headers = read_headers(name)
    assert headers.config == Checkpoint.open(locate(name)).config
