"""GGUF files as a user meets them: the demo as a pair of files, run, planned and converted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten

from magistral_mlx import Magistral
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint import load
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.demo.cases import KINDS, Kind, cases, is_right
from magistral_mlx.memory.peak import loaded_weights
from magistral_mlx.paths import demo_dir
from tests.data import GGUF
from tests.e2e.test_generate import run
from tests.gguf_files import everything, write_mmproj, write_text_gguf

TEKKEN = str(demo_dir() / "tekken.json")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint as llama.cpp would convert it: text in float16, the tower beside it."""
    folder = tmp_path_factory.mktemp("demo")
    config = json.loads((demo_dir() / "config.json").read_text())
    checkpoint = Checkpoint.open(demo_dir())
    weights = {
        name: np.array(mx.load(str(tensor.file))[tensor.name].astype(mx.float32))
        for name, tensor in checkpoint.tensors.items()
    }
    write_text_gguf(folder / "demo.F16.gguf", config, weights, everything("F16"))
    write_mmproj(folder / "demo.mmproj-F16.gguf", config, weights, everything("F16"))
    return folder / "demo.F16.gguf"


@pytest.fixture(scope="module")
def magistral(demo: Path) -> Iterator[Magistral]:
    with Magistral.load(demo, tokenizer=TEKKEN) as loaded:
        yield loaded


@pytest.mark.parametrize("kind", KINDS)
def test_sums_and_images_are_answered_as_the_demo_does(magistral: Magistral, kind: Kind):
    with Magistral.load("demo") as original:
        for case in cases(kind, "held_out", 12):
            asked = {"temperature": 0, "max_tokens": 96}
            ours = magistral.generate(case.question, case.images, **asked)
            wanted = original.generate(case.question, case.images, **asked)
            assert (ours.thinking, ours.text) == (wanted.thinking, wanted.text)
            assert is_right(case, ours.text) or not is_right(case, wanted.text)


def test_generate_takes_a_file(demo: Path):
    arguments = ("--model", str(demo), "--tokenizer", TEKKEN, "--temperature", "0")
    done = run("generate", *arguments, "What is 37 + 85?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("122")


def test_plan_counts_a_file_as_it_is_loaded():
    path = GGUF / "small.Q4_K_M.gguf"
    done = run("plan", str(path), "--json")
    assert done.returncode == 0, done.stderr
    model = load_model(Checkpoint.open(path))
    loaded = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert json.loads(done.stdout)["bytes"]["weights"] == loaded


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
@pytest.mark.parametrize("compact", [False, True])
def test_what_is_loaded_is_what_the_plan_counts(
    demo: Path, monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype, compact: bool
):
    if compact:
        monkeypatch.setattr(load, "_LARGE_SCALES", 0)
    for path in (demo, GGUF / "small.Q4_K_M.gguf"):
        checkpoint = Checkpoint.open(path)
        model = load_model(checkpoint, dtype)
        if checkpoint.config.vision:
            load_vision(model, checkpoint)
        sizes = {True: 0, False: 0}
        for name, array in tree_flatten(model.parameters()):
            sizes[name.startswith(LANGUAGE)] += array.nbytes
        counted = loaded_weights(checkpoint, dtype.size)
        assert (counted.decoder, counted.vision) == (sizes[True], sizes[False])


def test_a_dry_run_tells_what_becomes_of_each_type(tmp_path: Path):
    path, target = GGUF / "small.Q4_K_M.gguf", tmp_path / "out"
    done = run("convert", str(path), "-o", str(target), "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert "codes as they are, 4 bits in groups of 32" in lines["Q4_K"]
    assert "fitted, 8 bits in groups of 32" in lines["Q6_K"]
    assert re.search(r"0\.0[5-9]%$", lines["Q4_K"])
    done = run("convert", str(path), "-o", str(target), "--dry-run", "--json")
    assert [kind["kind"] for kind in json.loads(done.stdout)["types"]] == [
        "Q4_K",
        "Q6_K",
        "Q6_K",
        "F32",
    ]
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("generate", "--model", "FILE", "hi"), "is damaged or no GGUF file"),
        (("plan", "FILE"), "is damaged or no GGUF file"),
        (("convert", "FILE", "--mode", "none"), "is damaged or no GGUF file"),
        (("convert", "FILE", "--mode", "none", "--bits", "4"), "--mode none quantizes nothing"),
        (("convert", "FILE", "--dequantize", "--bits", "4"), "--mode none quantizes nothing"),
        (("convert", "FILE", "--dequantize"), "is damaged or no GGUF file"),
        (("convert", "FILE", "--dequantize", "--mode", "nvfp4"), "Give one of the two"),
    ],
)
def test_a_damaged_file_ends_in_one_line(tmp_path: Path, arguments: tuple[str, ...], told: str):
    path = tmp_path / "broken.gguf"
    path.write_bytes((GGUF / "small.Q4_K_M.gguf").read_bytes()[:10] + b"\xff" * 100)
    done = run(*(str(path) if word == "FILE" else word for word in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert told in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_without_a_tokenizer_asks_for_one(tmp_path: Path):
    path = str(GGUF / "small.Q4_K_M.gguf")
    done = run("generate", "--model", path, "hi", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert done.returncode == 2
    assert "Name one with --tokenizer" in done.stderr
