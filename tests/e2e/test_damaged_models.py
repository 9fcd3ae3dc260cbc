"""Models that are damaged: one line and status 2, and the other models are as good as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magistral_mlx import Magistral
from magistral_mlx.checkpoint.header import LENGTH_BYTES, read_header
from magistral_mlx.errors import CheckpointError
from magistral_mlx.paths import conversions_dir, demo_dir
from tests.command_line import run

NORM = "language_model.model.norm.weight"
LAYER = "language_model.model.layers.1."


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(demo_dir(), tmp_path / "model")


def overwrite(folder: Path, name: str, bits: int, place: int = 0) -> None:
    """Put one bfloat16 value into a tensor."""
    for file in folder.glob("*.safetensors"):
        tensor = read_header(file).get(name)
        if tensor is not None:
            with file.open("r+b") as stream:
                stream.seek(tensor.offset + 2 * place)
                stream.write(np.uint16(bits).tobytes())
            return
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        (NORM, 0x7FC0),  # NaN
        (NORM, 0x7F80),  # infinity
        (LAYER + "input_layernorm.weight", 0xFFC0),
        (LAYER + "mlp.down_proj.weight", 0x7FFF),
        (LAYER + "self_attn.q_proj.weight", 0xFF80),
        ("language_model.model.embed_tokens.weight", 0x7FC0),
    ],
)
def test_weights_that_are_no_numbers_end_the_first_answer(model: Path, name: str, bits: int):
    # The embedding's first row is that of a token which the prompt below has.
    place = 192 if name.endswith("embed_tokens.weight") else 0  # <s> is token 1, 192 wide
    overwrite(model, name, bits, place)
    with Magistral.load(model) as magistral:
        scored: dict[str, Any] = {"max_tokens": 0, "prompt_logprobs": 1}
        for options in ({"max_tokens": 5}, {"max_tokens": 5}, scored):
            with pytest.raises(CheckpointError, match="first logits are not finite"):
                magistral.generate("What is 37 + 85?", **options)


def test_the_command_says_so_in_one_line(model: Path):
    overwrite(model, NORM, 0x7FC0)
    done = run("generate", "Hello", "--model", str(model))
    assert (done.status, done.stdout) == (2, b"")
    assert "first logits are not finite" in done.stderr.splitlines()[-1]


def cut(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def deep(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000)


def a_billion_layers(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["num_hidden_layers"] = 10**9
    path.write_text(json.dumps(config))


def null_in_the_index(folder: Path) -> None:
    index = {"weight_map": {"a": None}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def overlapping(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    content = file.read_bytes()
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    header: dict[str, Any] = json.loads(content[LENGTH_BYTES : LENGTH_BYTES + length])
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    last = max(entries, key=lambda entry: entry["data_offsets"])
    last["data_offsets"] = [place - 2 for place in last["data_offsets"]]
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(LENGTH_BYTES, "little") + raw + content[8 + length :])


@pytest.mark.parametrize("damage", [cut, deep, a_billion_layers, null_in_the_index, overlapping])
def test_one_damaged_folder_leaves_every_command_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
):
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HOME", str(tmp_path))
    damaged = shutil.copytree(demo_dir(), conversions_dir() / "damaged")
    damage(damaged)
    whole = conversions_dir() / "whole-4bit"
    assert run("convert", "demo", "-o", str(whole), "--group-size", "32").status == 0
    listed = [json.loads(line) for line in run("models", "--json").stdout.splitlines()]
    assert {model["name"]: model["complete"] for model in listed} == {
        "damaged": False,
        "whole-4bit": True,
    }
    assert run("models").status == 0
    assert run("plan").status == 0
    assert b"damaged damaged or incomplete" in run("doctor").stdout
    answer = run("generate", "What is 1 + 2?", "--temperature", "0")
    assert (answer.status, answer.stdout.split()[-1:]) == (0, [b"3"])
    refused = run("generate", "What is 1 + 2?", "--model", "damaged")
    assert "damaged" in refused.refusal
