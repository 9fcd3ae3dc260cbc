"""GGUF models against what llama.cpp answers, and against the same weights read from safetensors.

Tolerances: in float32 llama.cpp's greedy tokens exactly and its log-probabilities within 0.001
where every type is exact; the largest difference of logits at most 1e-4 of the largest logit
between the two formats. Where Q6_K is fitted the weights are within the bound of `test_gguf_blocks`
and log-probabilities within 0.025.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.gguf.layout import EXACT
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.engine.images import encode_images
from magistral_mlx.engine.prefill import prefill
from magistral_mlx.model.magistral import MagistralModel
from tests.checkpoints import random_weights, tiny_config, write_hf_checkpoint
from tests.data import GGUF
from tests.gguf_files import everything, rewrite, write_mmproj, write_small, write_text_gguf

GOLDEN = json.loads((GGUF / "golden.json").read_text())
MIXED = GOLDEN["Q4_K_M"]
CONFIG = tiny_config(layers=2, hidden_size=256, intermediate_size=512)
IMG, BREAK, END = 10, 12, 13


def load(path: Path) -> MagistralModel:
    checkpoint = Checkpoint.open(path)
    model = load_model(checkpoint, mx.float32)
    if checkpoint.config.vision:
        load_vision(model, checkpoint)
    return model


def with_plain_matrices(source: Path, target: Path, kind: str) -> Path:
    """The same file, its matrices of one type as float32 values that `gguf` has dequantized."""

    def plain(
        _: str, data: NDArray[Any], stored: gguf.GGMLQuantizationType
    ) -> tuple[NDArray[Any], gguf.GGMLQuantizationType]:
        if stored.name != kind:
            return data, stored
        return gguf.quants.dequantize(data, stored), gguf.GGMLQuantizationType.F32

    return rewrite(source, target, plain)


def answer(model: MagistralModel, prompt: list[int], count: int) -> tuple[list[int], Any]:
    """Greedy tokens, and the log-probabilities of the first."""
    caches, tokens, first = model.make_caches(), [], None
    x = mx.array([prompt])
    for _ in range(count):
        logits = np.array(model.logits(model(model.embed(x), caches))[0, -1], np.float64)
        if first is None:
            first = logits - logits.max()
            first -= np.log(np.exp(first).sum())
        tokens.append(int(logits.argmax()))
        x = mx.array([tokens[-1:]])
    return tokens, first


@pytest.mark.parametrize("case", MIXED, ids=["first", "second"])
def test_exact_types_give_the_tokens_of_llama_cpp(tmp_path: Path, case: dict[str, Any]):
    path = with_plain_matrices(GGUF / "small.Q4_K_M.gguf", tmp_path / "m.gguf", "Q6_K")
    tokens, first = answer(load(path), case["prompt"], len(case["tokens"]))
    assert tokens == case["tokens"]
    for token, logprob in case["top_logprobs_of_the_first"]:
        assert first[token] == pytest.approx(logprob, abs=1e-3)


@pytest.mark.parametrize("case", MIXED, ids=["first", "second"])
def test_fitted_types_come_near_to_llama_cpp(case: dict[str, Any]):
    tokens, first = answer(load(GGUF / "small.Q4_K_M.gguf"), case["prompt"], len(case["tokens"]))
    assert tokens == case["tokens"]
    for token, logprob in case["top_logprobs_of_the_first"]:
        assert first[token] == pytest.approx(logprob, abs=0.025)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
def test_each_exact_type_gives_the_tokens_of_llama_cpp(tmp_path: Path, kind: str):
    stored = write_small(tmp_path / "m.gguf", kind)
    made_by_llama_cpp = GOLDEN["sha256_of_matrices"].get(kind)
    if made_by_llama_cpp:  # the same bytes, up to rows of the embedding that are not used here
        layers = b"".join(data.tobytes() for name, data in stored.items() if name[:4] == "blk.")
        assert hashlib.sha256(layers).hexdigest() == made_by_llama_cpp
    model = load(tmp_path / "m.gguf")
    for case in GOLDEN["F16" if kind in ("BF16", "F32") else kind]:  # each holds what F16 does
        tokens, first = answer(model, case["prompt"], len(case["tokens"]))
        assert tokens == case["tokens"]
        for token, logprob in case["top_logprobs_of_the_first"]:
            assert first[token] == pytest.approx(logprob, abs=1e-3)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *EXACT])
def test_a_gguf_and_its_weights_in_safetensors_are_the_same_model(tmp_path: Path, kind: str):
    weights = random_weights(CONFIG, seed=5)
    stored = write_text_gguf(tmp_path / "model.gguf", CONFIG, weights, everything(kind))
    stored |= write_mmproj(tmp_path / "mmproj.gguf", CONFIG, weights, everything("F16"))
    folder = write_hf_checkpoint(
        tmp_path / "hf", config=CONFIG, weights=stored, dtype="float32", shards=1
    )
    ours, wanted = logits_of(load(tmp_path / "model.gguf")), logits_of(load(folder))
    assert np.abs(ours - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_quantized_tower_is_read_too(tmp_path: Path):
    weights = random_weights(CONFIG, seed=6)
    stored = write_text_gguf(tmp_path / "model.gguf", CONFIG, weights, everything("Q8_0"))
    stored |= write_mmproj(tmp_path / "mmproj.gguf", CONFIG, weights, everything("Q8_0"))
    folder = write_hf_checkpoint(
        tmp_path / "hf", config=CONFIG, weights=stored, dtype="float32", shards=1
    )
    ours, wanted = logits_of(load(tmp_path / "model.gguf")), logits_of(load(folder))
    assert np.abs(ours - wanted).max() <= 1e-4 * np.abs(wanted).max()


def logits_of(model: MagistralModel) -> NDArray[np.float32]:
    """Logits after a prompt of text and an image of 2 x 3 tokens."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((3, 56, 84), dtype=np.float32)
    text = rng.integers(100, 1280, 12).tolist()
    tokens = [*text, IMG, IMG, IMG, BREAK, IMG, IMG, IMG, END, *text[:5]]
    steps = prefill(
        model, model.make_caches(), np.array(tokens, np.int32), encode_images(model, [image])
    )
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return np.array(done.value[0])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_a_head_in_floating_point_has_the_nearest_values(dtype: mx.Dtype):
    path = GGUF / "small.Q4_K_M.gguf"
    stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "output.weight")
    wanted = mx.array(gguf.quants.dequantize(stored.data, stored.tensor_type)).astype(dtype)
    found = load_model(Checkpoint.open(path), dtype).language_model.lm_head.weight
    assert found.dtype == dtype
    assert bool(mx.array_equal(found, wanted))
