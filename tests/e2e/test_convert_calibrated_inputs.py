"""Calibration by images, by importance matrices, and in the floating-point formats."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from magistral_convert import ConvertOptions, convert, prepare, run
from magistral_convert.calibration import memory, text
from magistral_convert.calibration.images import calibration_images
from magistral_convert.calibration.layers import InputStatistics, LayerPass
from magistral_convert.calibration.states import HiddenStates, SavedStates
from magistral_convert.calibration.vision import ProjectorPass, VisionBlockPass, embed_image
from magistral_mlx.backend import backend, mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.checkpoint.names import LANGUAGE, PROJECTOR
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint
from tests.e2e.test_convert_interrupted import content, run_and_die

TOKENS = 256
IMAGE = (3, 84, 112)  # channels, height, width
VISION = ConvertOptions(
    bits=3, calibration=("default",), calibration_tokens=TOKENS, quantize_vision=True
)


@pytest.fixture(scope="module", autouse=True)
def short_texts_and_small_images() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "SEQUENCE", 64)
        patch.setattr(text, "HELD_OUT", 4)
        patch.setattr(memory, "IMAGE_SIZES", ((4, 3), (3, 4), (5, 2), (3, 3)))
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with outliers, and channels that are louder than others, as trained ones have."""
    config = tiny_config(layers=2)
    rng = np.random.default_rng(0)
    weights = random_weights(config, 0)
    for name, values in weights.items():
        if name.endswith(("norm.weight", "ln_pre.weight")):
            values *= np.exp(rng.standard_normal(values.shape)).astype(np.float32)
        elif values.ndim == 2 and "embed" not in name:
            values *= np.exp(0.5 * rng.standard_normal(values.shape)).astype(np.float32)
    return write_hf_checkpoint(
        tmp_path_factory.mktemp("source"), config=config, weights=weights, shards=3
    )


def outputs(folder: Path) -> tuple[mx.array, mx.array]:
    """Logits of held-out text, and the embeddings of an image that is none of the calibration's."""
    checkpoint = Checkpoint.open(folder)
    model = load_model(checkpoint, mx.float32)
    found = text.calibration_text((), folder / "tekken.json", 1280, TOKENS).held_out
    rows = [mx.array(ids)[None] for ids in found]
    logits = [model.logits(model(model.embed(r), model.make_caches())) for r in rows]
    pixels = np.random.default_rng(5).standard_normal(IMAGE).astype(np.float32)
    load_vision(model, checkpoint)
    return mx.concatenate(logits), model.encode_image(mx.array(pixels))


def error(found: mx.array, right: mx.array) -> float:
    return float(mx.square(found - right).mean().item())


@pytest.fixture(scope="module")
def right(source: Path) -> tuple[mx.array, mx.array]:
    return outputs(source)


@pytest.fixture(scope="module")
def plain_errors(source: Path, right, tmp_path_factory: pytest.TempPathFactory):
    """Errors of logits and of image embeddings at 3 bits without calibration."""
    options = ConvertOptions(bits=3, calibration=("none",), quantize_vision=True)
    found = outputs(convert(source, tmp_path_factory.mktemp("plain") / "out", options))
    return [error(*pair) for pair in zip(found, right, strict=True)]


def test_the_passes_of_tower_and_projector_are_those_of_the_runtime(source: Path):
    checkpoint = Checkpoint.open(source)
    config, model = checkpoint.config, load_model(checkpoint, mx.float32)
    load_vision(model, checkpoint)
    assert config.vision
    stored = {
        name.removesuffix(".weight"): mx.load(str(tensor.file))[tensor.name].astype(mx.float32)
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith(LANGUAGE)
    }
    image = calibration_images(config)[4]
    grid = (image.shape[0] // 14, image.shape[1] // 14)
    begin = {
        "patch_conv.weight": stored["vision_tower.patch_conv"].transpose(0, 2, 3, 1).flatten(1),
        "ln_pre.weight": stored["vision_tower.ln_pre"],
    }
    x = embed_image(image, begin, config.vision, mx.float32)
    block, told = VisionBlockPass(config.vision), []
    for number in range(config.vision.num_hidden_layers):
        layer = f"vision_tower.transformer.layers.{number}."
        weights = {name.removeprefix(layer): value for name, value in stored.items()}
        x = block(x, grid, weights, lambda name, _: told.append(name))
    assert len(told) == 4 * config.vision.num_hidden_layers
    weights = {name.removeprefix(PROJECTOR): value for name, value in stored.items()}
    found = ProjectorPass(config)(x, grid, weights)
    right = model.encode_image(mx.array(image).transpose(2, 0, 1))
    assert np.allclose(np.array(found), np.array(right), atol=1e-4 * float(mx.abs(right).max()))


def test_calibrated_vision_is_nearer_to_the_original_than_plain(
    source: Path, right, plain_errors, tmp_path: Path
):
    _, found = outputs(convert(source, tmp_path / "out", VISION))
    assert error(found, right[1]) < 0.85 * plain_errors[1]


def test_killed_among_the_blocks_of_the_tower_it_goes_on_with_the_same_bytes(
    source: Path, tmp_path: Path
):
    whole = tmp_path / "whole/out"
    count = int(run_and_die(source, whole, 0, "calibrated", "vision").stdout)
    target = tmp_path / "cut/out"
    run_and_die(source, target, round(0.85 * count), "calibrated", "vision")
    assert not target.exists()
    assert content(convert(source, target, VISION)) == content(whole)


def test_memory_stays_within_the_plan(source: Path, tmp_path: Path):
    options = replace(VISION, method="gptq")
    conversion = prepare(source, tmp_path / "out", options)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    run(conversion)
    assert conversion.peak_bytes is not None
    assert mx.get_peak_memory() - before <= conversion.peak_bytes


def test_on_a_gpu_every_value_has_the_two_bytes_that_are_planned(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    two_bytes = replace(backend(), dtype=mx.bfloat16)
    monkeypatch.setattr("magistral_convert.calibration.pipeline.backend", lambda: two_bytes)
    monkeypatch.setattr(memory, "SEQUENCE", 64)
    monkeypatch.setattr(memory, "HELD_OUT", 4)
    dtypes: set[mx.Dtype] = set()

    def watched(run: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*given: Any) -> Any:
            result = run(*given)
            arrays = [value for _, value in tree_flatten([*given, result])]
            dtypes.update(array.dtype for array in arrays if isinstance(array, mx.array))
            return result

        return watching

    for kind in (LayerPass, VisionBlockPass, ProjectorPass):
        monkeypatch.setattr(kind, "__call__", watched(kind.__call__))
    monkeypatch.setattr(InputStatistics, "add", watched(InputStatistics.add))
    save, sizes = SavedStates.save, []

    def save_watched(self: SavedStates, layer: int, states: HiddenStates) -> None:
        save(self, layer, states)
        resumed = list(vars(self.load(layer)).values())
        dtypes.update(array.dtype for array in resumed)
        sizes.append(sum(array.nbytes for array in resumed))

    monkeypatch.setattr(SavedStates, "save", save_watched)
    conversion = prepare(source, tmp_path / "out", replace(VISION, method="gptq"))
    run(conversion)
    assert dtypes == {mx.bfloat16}
    text_config = conversion.source.checkpoint.config.text
    assert [2 * size for size in sizes] == [memory.state_bytes(text_config, TOKENS, 2)] * 3


def test_floating_point_formats_are_calibrated_too(source: Path, right, tmp_path: Path):
    errors = {}
    for name in ("none", "default"):
        options = ConvertOptions(mode="nvfp4", calibration=(name,), calibration_tokens=TOKENS)
        errors[name] = error(outputs(convert(source, tmp_path / name, options))[0], right[0])
    assert errors["default"] < 0.9 * errors["none"], errors


def test_an_importance_matrix_takes_the_place_of_the_texts_inputs(
    source: Path, right, plain_errors, tmp_path: Path
):
    """Squares of the gains of the norms, which the inputs of most matrices have."""
    tensors = Checkpoint.open(source).tensors
    entries = {}
    for layer in range(2):
        for norm, parts in (
            ("input_layernorm", ("attn_q", "attn_k", "attn_v")),
            ("post_attention_layernorm", ("ffn_gate", "ffn_up")),
        ):
            stored = tensors[f"language_model.model.layers.{layer}.{norm}.weight"]
            gain = mx.load(str(stored.file))[stored.name].astype(mx.float32)
            entries |= {f"blk.{layer}.{part}.weight": np.array(gain * gain) for part in parts}
    file = tmp_path / "mine.dat"
    with file.open("wb") as stream:
        stream.write(struct.pack("<i", len(entries)))
        for name, values in entries.items():
            stream.write(struct.pack("<i", len(name)) + name.encode())
            stream.write(struct.pack("<ii", 1, len(values)) + values.astype("<f4").tobytes())
    asked = ConvertOptions(bits=3, imatrix=str(file), calibration_tokens=TOKENS)
    given = convert(source, tmp_path / "given", asked)
    assert error(outputs(given)[0], right[0]) < 0.85 * plain_errors[0]
    facts = json.loads((given / "config.json").read_bytes())["magistral_mlx"]["calibration"]
    assert facts["imatrix"] == "mine.dat"
    assert "columns weighted by mine.dat" in (given / "README.md").read_text()
