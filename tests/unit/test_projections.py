"""Projections of one input as one matrix: of which tensors, in which groups, and what it gives."""

from __future__ import annotations

import gc
import io
import re
from pathlib import Path

import numpy as np
import pytest
from mlx.utils import tree_flatten

from magistral_convert import convert
from magistral_convert.options import ConvertOptions
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint import load
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.model.linear import Projections
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.quantization import Quantization
from tests.checkpoints import (
    random_weights,
    tiny_config,
    write_hf_checkpoint,
    write_mistral_checkpoint,
)

FOUR, SIX = Quantization(4, 64), Quantization(6, 64)
SIZES = {"q_proj": 64, "k_proj": 32, "v_proj": 32}


def projections(*schemes: Quantization | None) -> tuple[Projections, list[mx.array]]:
    """Random projections of 128 features with these schemes, and each as a plain matrix."""
    module = Projections(128, **SIZES)
    module.arrange(schemes)
    plain = []
    rng = np.random.default_rng(3)
    for matrix, group in zip(module.matrices, module.groups, strict=True):
        rows = sum(module.sizes[n] for n in group)
        values = mx.array(rng.standard_normal((rows, 128), dtype=np.float32))
        if scheme := schemes[group[0]]:
            how = {"group_size": scheme.group_size, "bits": scheme.bits}
            matrix.weight, matrix.scales, matrix.biases = mx.quantize(values, **how)
            values = mx.dequantize(matrix.weight, matrix.scales, matrix.biases, **how)
        else:
            matrix.weight = values
        start = 0
        for n in group:
            plain.append(values[start : start + module.sizes[n]])
            start += module.sizes[n]
    return module, plain


@pytest.mark.parametrize(
    ("schemes", "groups"),
    [
        ((None, None, None), ((0, 1, 2),)),
        ((FOUR, FOUR, FOUR), ((0, 1, 2),)),
        ((FOUR, FOUR, SIX), ((0, 1), (2,))),
        ((FOUR, SIX, FOUR), ((0,), (1,), (2,))),
        ((FOUR, FOUR, None), ((0, 1), (2,))),
    ],
)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_neighbours_of_one_scheme_share_a_matrix_and_each_gives_its_own_product(
    schemes: tuple[Quantization | None, ...], groups: tuple[tuple[int, ...], ...], rows: int
):
    module, plain = projections(*schemes)
    assert module.groups == groups
    x = mx.array(np.random.default_rng(rows).standard_normal((1, rows, 128), dtype=np.float32))
    expected = [np.array(x @ matrix.T) for matrix in plain]
    np.testing.assert_allclose(np.array(module(x)), np.concatenate(expected, -1), atol=1e-4)
    for output, wanted in zip(module.apart(x), expected, strict=True):
        np.testing.assert_allclose(np.array(output), wanted, atol=1e-4)


def logits(model: MagistralModel) -> np.ndarray:
    """Of a few tokens at once, and of one after them."""
    caches = model.make_caches()
    found = []
    for tokens in ([[5, 6, 7, 8]], [[9]]):
        found.append(np.array(model.logits(model(model.embed(mx.array(tokens)), caches))))
    return np.concatenate(found, axis=1)


def test_parts_of_a_matrix_that_lie_in_different_files_come_together(tmp_path: Path):
    config = tiny_config(vision=False)
    weights = random_weights(config, 4)
    whole = write_hf_checkpoint(tmp_path / "one", config=config, weights=weights, shards=1)
    # A tensor a file: no two parts lie together.
    apart = write_hf_checkpoint(
        tmp_path / "many", config=config, weights=weights, shards=len(weights)
    )
    one, many = (load_model(Checkpoint.open(folder), mx.float32) for folder in (whole, apart))
    np.testing.assert_array_equal(logits(one), logits(many))


@pytest.mark.parametrize("recipe", ["4bit", "4bit-plus"])
def test_a_mixed_recipe_keeps_apart_only_what_differs(tmp_path: Path, recipe: str):
    config = tiny_config(vision=False, layers=9)
    source = write_hf_checkpoint(tmp_path / "source", config=config)
    checkpoint = Checkpoint.open(convert(source, tmp_path / "out", ConvertOptions(recipe=recipe)))
    model = load_model(checkpoint, mx.float32)
    groups = {
        layer.self_attn.qkv_proj.groups + layer.mlp.gate_up_proj.groups
        for layer in model.language_model.model.layers
    }
    together = ((0, 1, 2), (0, 1))
    assert groups == ({together} if recipe == "4bit" else {together, ((0, 1), (2,), (0, 1))})


def test_loading_holds_one_batch_twice_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(vision=False, layers=24)
    folder = write_hf_checkpoint(tmp_path, config=config, dtype="float32")
    checkpoint = Checkpoint.open(folder)
    batch = 1 << 20
    monkeypatch.setattr(load, "_BATCH_BYTES", batch)
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_model(checkpoint, mx.float32)
    held = mx.get_active_memory() - before
    assert held < checkpoint.nbytes * 1.01
    assert mx.get_peak_memory() - before <= held + batch * 1.01
    assert model.dtype == mx.float32


@pytest.mark.parametrize("layout", ["separate", "interleaved"])
def test_files_are_read_before_other_work_waits_for_them(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Metal a GPU's queue that waits for a slow disk is stopped by macOS."""
    config = tiny_config(vision=False)
    write = write_hf_checkpoint if layout == "separate" else write_mistral_checkpoint
    checkpoint = Checkpoint.open(write(tmp_path, config=config))
    evaluate, graphs = mx.eval, list[set[str]]()

    def record(*given: object) -> None:
        arrays = [array for _, array in tree_flatten(given)]
        text = io.StringIO()
        mx.export_to_dot(text, *arrays)
        graphs.append(set(re.findall(r'label ="([^"]+)", shape=rectangle', text.getvalue())))
        evaluate(*given)

    monkeypatch.setattr(mx, "eval", record)
    load_model(checkpoint, mx.float16)
    assert {"Load"} in graphs and any("Concatenate" in graph for graph in graphs)
    assert all(graph == {"Load"} for graph in graphs if "Load" in graph)
