"""Divergence, agreement and perplexity against float64 arithmetic on transformers' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import MistralForCausalLM

from magistral_mlx.evaluation.quality.measure import QualityRun
from magistral_mlx.evaluation.quality.summary import summarise
from magistral_mlx.evaluation.quality.text import ComparedText
from magistral_mlx.evaluation.quality.variants import ComparedModel, Variant
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint

LENGTHS = (97, 40)


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGISTRAL_MLX_HOME", str(tmp_path / "home"))


def write_pair(folder: Path, size: float) -> list[Path]:
    """Two checkpoints, whose matrices differ by noise of this size."""
    config = tiny_config(vision=False, layers=2)
    weights = random_weights(config, 3)
    rng = np.random.default_rng(4)
    changed = {
        name: values + size * np.abs(values).mean() * rng.standard_normal(values.shape)
        for name, values in weights.items()
    }
    pair = {"first": weights, "other": {n: w.astype(np.float32) for n, w in changed.items()}}
    return [
        write_hf_checkpoint(folder / name, config=config, weights=some, dtype="float32")
        for name, some in pair.items()
    ]


def reference(folder: Path, sequences: list[NDArray[np.int32]]) -> NDArray[np.float64]:
    """(T, vocab_size) log-probabilities of all positions but the last of each sequence."""
    model = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found = [model(torch.tensor(ids[None].astype(np.int64))).logits[0] for ids in sequences]
    logits = np.concatenate([each[:-1].numpy() for each in found]).astype(np.float64)
    total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    return logits - logits.max(-1, keepdims=True) - total


@pytest.mark.parametrize("size", [0.02, 0.5])
def test_figures_are_those_of_transformers_logits(size: float, tmp_path: Path):
    """Tolerance: 1e-5 + 0.1 % of a divergence, 0.01 % of a perplexity."""
    folders = write_pair(tmp_path, size)
    rng = np.random.default_rng(5)
    sequences = [rng.integers(100, 1280, length).astype(np.int32) for length in LENGTHS]
    models = [ComparedModel.open(Variant(str(f), dtype="float32")) for f in folders]
    [pair] = QualityRun(models, ComparedText(tuple(sequences))).run()

    first, other = (reference(folder, sequences) for folder in folders)
    divergence = (np.exp(first) * (first - other)).sum(-1)
    agrees = first.argmax(-1) == other.argmax(-1)
    following = np.concatenate([ids[1:] for ids in sequences])[:, None]
    found = np.concatenate([figures.divergence for figures in pair.figures])
    np.testing.assert_allclose(found, divergence, rtol=1e-3, atol=1e-5)
    total, _ = summarise(pair.figures)
    assert total.tokens == sum(LENGTHS) - len(LENGTHS)
    assert total.divergence == pytest.approx(divergence.mean(), rel=1e-3, abs=1e-5)
    assert total.high == pytest.approx(np.percentile(divergence, 99), rel=1e-3, abs=1e-5)
    assert total.agreement == pytest.approx(agrees.mean())
    for perplexity, logprobs in ((total.first, first), (total.other, other)):
        right = np.exp(-np.take_along_axis(logprobs, following, -1).mean())
        assert perplexity == pytest.approx(right, rel=1e-4)
