"""Adapters that a conversion makes part of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magistral_convert import ConvertOptions, convert, prepare
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.adapters.load import load_adapter
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.errors import CheckpointError
from tests.adapter_files import write_adapter, write_peft_adapter
from tests.checkpoints import tiny_config, write_hf_checkpoint, write_mistral_checkpoint
from tests.data import GGUF

LAYER = "base_model.model.model.language_model.layers.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fused")
    write_hf_checkpoint(root / "base", seed=1)
    write_mistral_checkpoint(root / "mistral", seed=1)
    write_peft_adapter(root / "plain", seed=1)
    tensors: dict[str, Any] = {}
    rng = np.random.default_rng(5)
    for target, out, inner in (("self_attn.k_proj", 128, 128), ("mlp.up_proj", 256, 128)):
        module = f"{LAYER}.{target}"
        tensors[f"{module}.lora_A.weight"] = rng.standard_normal((4, inner), np.float32) * 0.1
        tensors[f"{module}.lora_B.weight"] = rng.standard_normal((out, 4), np.float32) * 0.1
        tensors[f"{module}.lora_magnitude_vector"] = 1 + rng.random(out, np.float32)
    tensors["base_model.model.lm_head.weight"] = rng.standard_normal((1280, 128), np.float32) * 0.1
    embedding = "base_model.model.model.language_model.embed_tokens"
    tensors[f"{embedding}.lora_embedding_A"] = rng.standard_normal((4, 1280), np.float32) * 0.1
    tensors[f"{embedding}.lora_embedding_B"] = rng.standard_normal((128, 4), np.float32) * 0.1
    write_adapter(root / "dora", tensors, use_dora=True)
    return root


def logits(folder: Path, adapter: Path | None = None) -> Any:
    """(L, vocab_size) of some tokens, with an adapter or without."""
    model = load_model(Checkpoint.open(folder), mx.float32)
    rows = [load_adapter(StoredAdapter.open(adapter, model.config), model)] if adapter else [None]
    tokens = mx.array([[1, 1005, 1100, 1010, 1200]])
    with model.adapters.using(rows):
        return np.array(model.logits(model(model.embed(tokens), model.make_caches()))[0])


@pytest.mark.parametrize("adapter", ["plain", "dora"])
@pytest.mark.parametrize(("mode", "bits", "bound"), [("none", None, 0.02), ("affine", 8, 0.08)])
def test_the_result_answers_as_the_adapter_does(
    folder: Path, tmp_path: Path, adapter: str, mode: str, bits: int | None, bound: float
) -> None:
    options = ConvertOptions(mode=mode, bits=bits, adapter=str(folder / adapter))
    fused = logits(convert(folder / "base", tmp_path / "fused", options))
    wanted, base = logits(folder / "base", folder / adapter), logits(folder / "base")
    largest = np.abs(wanted).max()
    assert np.abs(fused - wanted).max() <= bound * largest < np.abs(base - wanted).max()


def test_every_layout_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    options = ConvertOptions(adapter=str(folder / "dora"))
    one, other = (
        convert(folder / layout, tmp_path / layout, options) for layout in ("base", "mistral")
    )
    name = "model-00001-of-00001.safetensors"
    assert (one / name).read_bytes() == (other / name).read_bytes()
    card = (one / "README.md").read_text()
    assert "The adapter dora is part" in card and str(folder) not in card


def test_a_gguf_file(folder: Path, tmp_path: Path) -> None:
    """What the adapter changes is quantized anew, and the rest keeps its codes."""
    shapes = {"self_attn.q_proj": (256, 256), "mlp.down_proj": (256, 768)}
    adapter = write_peft_adapter(tmp_path / "adapter", targets=shapes, size=1)
    options = ConvertOptions(tokenizer=str(folder / "base"), adapter=str(adapter))
    source = GGUF / "small.Q4_K_M.gguf"
    fused = convert(source, tmp_path / "fused", options)
    before = prepare(source, tmp_path / "before", ConvertOptions(tokenizer=str(folder / "base")))
    after = prepare(source, tmp_path / "fused", options)
    changed = {tensor.name for tensor in after.plan.tensors if tensor.fusion}
    assert len(changed) == 6
    schemes = {tensor.name: tensor.scheme for tensor in before.plan.tensors}
    assert {tensor.name: tensor.scheme for tensor in after.plan.tensors} == schemes
    wanted, base = logits(source, adapter), logits(source)
    difference = np.abs(logits(fused) - wanted).max()
    assert difference < 0.3 * np.abs(base - wanted).max()


def test_an_adapter_of_another_model_is_refused_before_anything(
    folder: Path, tmp_path: Path
) -> None:
    base = write_hf_checkpoint(tmp_path / "other", config=tiny_config(hidden_size=256))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        prepare(base, tmp_path / "out", ConvertOptions(adapter=str(folder / "plain")))
    tied = tiny_config(tie_word_embeddings=True) | {"tie_word_embeddings": True}
    base = write_hf_checkpoint(tmp_path / "tied", config=tied)
    with pytest.raises(CheckpointError, match="cannot be fused"):
        prepare(base, tmp_path / "out", ConvertOptions(adapter=str(folder / "dora")))
    assert not (tmp_path / "out").exists()


def test_a_matrix_that_is_replaced_by_nans_is_refused(folder: Path, tmp_path: Path) -> None:
    head = np.zeros((1280, 128), np.float32)
    head[700, 5] = np.nan
    adapter = write_adapter(tmp_path / "nan", {"base_model.model.lm_head.weight": head})
    options = ConvertOptions(adapter=str(adapter))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight in .* makes infinities or NaNs"):
        convert(folder / "base", tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_was_trained_again_in_place_is_read_again(tmp_path: Path) -> None:
    base = write_hf_checkpoint(tmp_path / "base", seed=1)
    options = ConvertOptions(mode="none", adapter=str(tmp_path / "adapter"))
    found = []
    for seed in (1, 2):
        write_peft_adapter(tmp_path / "adapter", seed=seed, layers=1)
        fused = convert(base, tmp_path / f"fused-{seed}", options)
        found.append((fused / "model-00001-of-00001.safetensors").read_bytes())
    assert found[0] != found[1]
