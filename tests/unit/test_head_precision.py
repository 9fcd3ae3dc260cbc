"""The head of a quantized model computes in float32, whatever the rest of the model does."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

from magistral_convert import convert
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.adapters.load import load_adapter
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.memory.peak import loaded_weights
from magistral_mlx.model.adapters import MatrixChange
from magistral_mlx.model.linear import rows_of
from tests.adapter_files import write_adapter
from tests.checkpoints import tiny_config, write_hf_checkpoint

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16}
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
TIED = pytest.mark.parametrize("tied", [False, True], ids=["a head", "tied"])


@lru_cache
def checkpoint(tied: bool = False) -> Checkpoint:
    folder = Path(mkdtemp(prefix="head-"))
    config = tiny_config(vision=False, layers=2, tie_word_embeddings=tied)
    write_hf_checkpoint(folder / "source", config=config)
    return Checkpoint.open(convert(folder / "source", folder / "4bit"))


def head_of(model: Any) -> Any:
    language = model.language_model
    return language.lm_head if "lm_head" in language else language.model.embed_tokens


@EACH_DTYPE
@TIED
def test_logits_are_those_of_float32(tied: bool, dtype: mx.Dtype) -> None:
    model = load_model(checkpoint(tied), dtype)
    h = mx.array(np.random.default_rng(1).standard_normal((1, 3, 128)) * 4).astype(dtype)
    logits = model.logits(h)
    assert logits.dtype == mx.float32
    expected = h.astype(mx.float32) @ rows_of(head_of(model), slice(None)).T
    np.testing.assert_allclose(np.array(logits), np.array(expected), rtol=1e-4, atol=1e-4)
    rounded = np.abs(np.array(expected.astype(dtype).astype(mx.float32) - expected)).max()
    assert np.abs(np.array(logits - expected)).max() < rounded / 10


@TIED
def test_near_ties_in_bfloat16_are_rare(tied: bool) -> None:
    """Rounded to bfloat16 the two largest of 1,280 logits are often equal."""
    model = load_model(checkpoint(tied), mx.bfloat16)
    h = mx.array(np.random.default_rng(2).standard_normal((1, 400, 128)) * 4)
    logits = model.logits(h.astype(mx.bfloat16))[0]

    def ties(values: mx.array) -> int:
        ranked = np.sort(np.array(values.astype(mx.float32)), axis=-1)
        return int((ranked[:, -1] == ranked[:, -2]).sum())

    assert ties(logits) == 0 < ties(logits.astype(mx.bfloat16))


@EACH_DTYPE
@TIED
def test_nothing_but_the_head_is_wider(tied: bool, dtype: mx.Dtype) -> None:
    """Neither what it is made of, nor what a pass carries from layer to layer; as planned."""
    opened = checkpoint(tied)
    model = load_model(opened, dtype)
    parts = dict(tree_flatten(model.parameters()))
    wide = {name for name, array in parts.items() if array.dtype == mx.float32}
    head = "language_model.model.embed_tokens" if tied else "language_model.lm_head"
    assert wide == {f"{head}.scales", f"{head}.biases"}
    planned = loaded_weights(opened, dtype.size)
    assert planned.decoder == sum(array.nbytes for array in parts.values())
    h = model.embed(mx.array([[5, 6]]))
    assert {h.dtype, model(h, model.make_caches()).dtype} == {dtype}


@EACH_DTYPE
@pytest.mark.parametrize("kind", ["whole", "factors"])
def test_a_changed_head_is_multiplied_as_it_is_stored(kind: str, dtype: mx.Dtype) -> None:
    """A quantized base computes its head in float32: no matrix of the adapter is cast to that."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> mx.array:
        return mx.array(rng.standard_normal(shape, np.float32) / 8).astype(dtype)

    if kind == "whole":
        change = MatrixChange(normal(40_000, 64), gain=normal(40_000))
    else:
        change = MatrixChange(a=normal(64, 32), b=normal(32, 40_000), gain=normal(40_000))
    wide = {name: one.astype(mx.float32) for name, one in vars(change).items() if one is not None}
    x, y = mx.ones((1, 1, 64)), normal(1, 1, 40_000).astype(mx.float32)
    wanted = MatrixChange(**wide)(x, y)
    largest = max(array.nbytes for array in wide.values())
    del wide
    mx.eval(x, y, wanted, *(one for one in vars(change).values() if one is not None))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    found = change(x, y)
    mx.eval(found)
    assert mx.get_peak_memory() - before < largest / 2
    assert found.dtype == mx.float32
    bound = 0.01 * float(mx.abs(wanted).max())
    np.testing.assert_allclose(np.array(found), np.array(wanted), atol=bound)


def test_dora_on_a_tied_head(tmp_path: Path) -> None:
    """Its rows are those of the embedding."""
    model = load_model(checkpoint(tied=True), mx.float32)
    module = "base_model.model.lm_head"
    tensors = {
        f"{module}.lora_A.weight": np.ones((4, 128), np.float32),
        f"{module}.lora_B.weight": np.ones((1280, 4), np.float32),
        f"{module}.lora_magnitude_vector": np.arange(1280, dtype=np.float32),
    }
    write_adapter(tmp_path, tensors, use_dora=True)
    adapter = load_adapter(StoredAdapter.open(tmp_path, model.config), model)
    h = mx.array(np.random.default_rng(2).standard_normal((1, 2, 128), np.float32))
    with model.adapters.using([adapter]):
        found = np.array(model.logits(h))
    head = np.array(rows_of(head_of(model), slice(None))) + 2 * 4
    head *= (np.arange(1280) / np.linalg.norm(head, axis=1))[:, None]
    np.testing.assert_allclose(found, np.array(h) @ head.T, rtol=1e-4, atol=1e-2)
