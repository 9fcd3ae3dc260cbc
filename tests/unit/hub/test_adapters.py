"""Adapters on the hub: which files are fetched, and what a model loaded with one answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from magistral_mlx import Magistral
from magistral_mlx.errors import CheckpointError, ModelNotFound
from magistral_mlx.hub.adapters import locate_adapter
from tests import command_line
from tests.adapter_files import write_peft_adapter
from tests.checkpoints import write_hf_checkpoint
from tests.fake_hub import FakeHub, write_repo

NAME = "someone/my-lora"
PEFT = {"adapter_config.json", "adapter_model.safetensors"}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}


def publish(hub: FakeHub, folder: Path, **files: str) -> None:
    """Put an adapter on the hub beside what training leaves there."""
    left = {"README.md": "# Mine", "optimizer.pt": "x" * 1000, "tokenizer.json": "{}"}
    hub.add(NAME, write_repo(folder, left | files))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_adapter_alone_is_fetched_and_once(hub: FakeHub, tmp_path: Path):
    source = write_peft_adapter(tmp_path / "source")
    publish(hub, source)
    seen: list[tuple[int, int]] = []
    folder = locate_adapter(NAME, on_progress=lambda done, size: seen.append((done, size)))
    assert names(folder) == PEFT
    for name in PEFT:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    size = (source / "adapter_model.safetensors").stat().st_size
    assert seen[-1] == (size, size)
    hub.requests.clear()
    assert locate_adapter(NAME) == folder
    assert hub.requests == []


def test_one_of_mlx_lm_is_found_too(hub: FakeHub, tmp_path: Path):
    files = {"adapter_config.json": "{}", "adapters.safetensors": "weights"}
    publish(hub, tmp_path / "source", **files)
    folder = locate_adapter(NAME)
    assert names(folder) == set(files)


def test_a_revision_is_kept_apart(hub: FakeHub, tmp_path: Path):
    source = write_peft_adapter(tmp_path / "source", seed=1)
    old = (source / "adapter_model.safetensors").read_bytes()
    commit = hub.add(NAME, write_peft_adapter(tmp_path / "old", seed=1))
    hub.add(NAME, write_peft_adapter(tmp_path / "new", seed=2))
    found = [locate_adapter(name) for name in (NAME, f"{NAME}@{commit}")]
    contents = [(folder / "adapter_model.safetensors").read_bytes() for folder in found]
    assert contents[0] != contents[1] == old


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, f"{NAME} holds no adapter: it has no adapter_config.json"),
        (
            {"adapter_config.json": "{}"},
            f"{NAME} holds no adapter_model.safetensors and no adapters.safetensors",
        ),
        (
            {"adapter_config.json": "{}", "adapter_model.bin": "x"},
            f"{NAME} holds no adapter_model.safetensors and no adapters.safetensors",
        ),
    ],
)
def test_a_repository_without_an_adapter(
    hub: FakeHub, tmp_path: Path, files: dict[str, str], told: str
):
    publish(hub, tmp_path / "source", **files)
    with pytest.raises(ModelNotFound, match=re.escape(told)):
        locate_adapter(NAME)


def test_a_repository_that_does_not_exist(hub: FakeHub):
    with pytest.raises(ModelNotFound, match="nobody/nothing"):
        locate_adapter("nobody/nothing")


def test_a_model_answers_with_an_adapter_of_the_hub(hub: FakeHub, tmp_path: Path):
    base = write_hf_checkpoint(tmp_path / "base", seed=1, names="new")
    adapter = write_peft_adapter(tmp_path / "source", seed=1)
    publish(hub, adapter)
    answers = []
    for source in (adapter, NAME, None):
        with Magistral.load(base, adapter=source, dtype="float32", context=256) as model:
            answers.append(model.generate("Which one?", **GREEDY).text)
            assert model.adapters == {NAME: ("my-lora",), None: ()}.get(source, ("source",))
    assert answers[0] == answers[1] != answers[2]


def test_an_adapter_of_another_base_is_one_line(hub: FakeHub, tmp_path: Path):
    base = write_hf_checkpoint(tmp_path / "base")
    publish(hub, write_peft_adapter(tmp_path / "source", layers=9))
    with pytest.raises(CheckpointError, match="this model does not have"):
        Magistral.load(base, adapter=NAME)
    for command in ("generate", "plan"):
        words = ["Hi", "--model"] if command == "generate" else []
        refusal = command_line.run(command, *words, str(base), "--adapter", NAME).refusal
        assert "this model does not have" in refusal
