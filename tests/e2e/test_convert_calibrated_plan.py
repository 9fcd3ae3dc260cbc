"""What a calibrated conversion needs, and says before it begins: packages, files, texts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from magistral_convert import ConvertOptions, convert, prepare, verify
from magistral_convert.calibration import files, text
from magistral_convert.quantize import dequantize_rows
from magistral_convert.source import FolderSource
from magistral_mlx.backend import mx
from magistral_mlx.errors import CheckpointError, InvalidOption, MissingExtra, TokenizerError
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint
from tests.command_line import run

OPTIONS = ConvertOptions(calibration=("default",), calibration_tokens=1024)


@pytest.fixture(autouse=True)
def short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SEQUENCE", 64)
    monkeypatch.setattr(text, "HELD_OUT", 4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(vision=False, layers=1)
    return write_hf_checkpoint(tmp_path_factory.mktemp("source"), config=config)


def test_without_the_extra_it_says_how_to_install_it_or_to_do_without(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magistral_mlx.requirements.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("magistral_mlx.backend.backend", lambda: SimpleNamespace(name="metal"))
    with pytest.raises(MissingExtra, match=r"`uv tool install '.\[convert\]'`.*\[convert\]'`\.$"):
        prepare(source, tmp_path / "out", OPTIONS)
    with pytest.raises(MissingExtra, match=r"Or convert without it: --calibration none\.$"):
        prepare(source, tmp_path / "out", ConvertOptions())
    prepare(source, tmp_path / "out", ConvertOptions(calibration=("none",)))


def test_floating_point_formats_are_calibrated_without_the_extra(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("magistral_mlx.requirements.importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "numba", None)
    options = ConvertOptions(mode="mxfp4", calibration=("default",), calibration_tokens=1024)
    assert (convert(source, tmp_path / "out", options) / "config.json").is_file()


@pytest.mark.parametrize("shards", [2, 4, 6])
@pytest.mark.parametrize("tied", [False, True])
def test_no_more_files_are_here_than_planned(
    tied: bool, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = tiny_config(vision=False, tie_word_embeddings=tied)
    weights = random_weights(config, 0)
    folder = write_hf_checkpoint(tmp_path / "source", config=config, weights=weights, shards=shards)
    plan = prepare(folder, tmp_path / "out", OPTIONS).plan
    sizes: dict[Path, int] = {}
    for tensor in plan.tensors:
        sizes[tensor.source.file] = sizes.get(tensor.source.file, 0) + tensor.source.nbytes
    here: set[Path] = set()
    most = [0]

    def fetch(self: FolderSource, file: Path, on_progress: object) -> None:
        here.add(file)
        most[0] = max(most[0], sum(sizes[file] for file in here))

    monkeypatch.setattr(FolderSource, "fetch", fetch)
    monkeypatch.setattr(FolderSource, "release", lambda self, file: here.discard(file))
    convert(folder, tmp_path / "out", OPTIONS)
    assert here == set()
    assert most[0] == files.most_at_once(plan)


def test_two_bits_and_compensation_are_not_taken_for_a_failing_disk(tmp_path: Path):
    """Loud channels decide here, and quiet ones with large weights end far off."""
    config = tiny_config(vision=False)
    weights, rng = random_weights(config, 2), np.random.default_rng(2)
    for name, values in weights.items():
        if name.endswith("norm.weight"):
            values[:] = np.exp(1.25 * rng.standard_normal(values.shape))
    folder = write_hf_checkpoint(tmp_path / "source", config=config, weights=weights)
    options = ConvertOptions(bits=2, method="gptq", calibration_tokens=2048)
    assert (convert(folder, tmp_path / "out", options) / "config.json").is_file()


def test_values_that_come_back_from_the_disk_in_other_places_are_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        verify, "dequantize_rows", lambda *given: mx.roll(dequantize_rows(*given), 7, axis=-1)
    )
    with pytest.raises(CheckpointError, match="was not converted correctly"):
        convert(source, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_refuses_a_text_or_tokenizer_that_a_run_would_refuse(
    source: Path, tmp_path: Path
):
    no_text = ConvertOptions(calibration=(str(tmp_path),))
    with pytest.raises(InvalidOption, match="cannot be read"):
        prepare(source, tmp_path / "out", no_text, dry_run=True)
    words = ("convert", str(source), "--calibration", str(tmp_path), "--dry-run")
    assert "cannot be read" in run(*words).refusal
    no_tokenizer = ConvertOptions(tokenizer=str(tmp_path / "none"))
    with pytest.raises(TokenizerError):
        prepare(source, tmp_path / "out", no_tokenizer, dry_run=True)
