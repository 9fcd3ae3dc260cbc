"""Ministral 3 (YaRN, and queries that grow with their position) against transformers and mlx-lm.

Random weights in float32; the original context is 32 tokens, so that a short text goes past it
several times. The tolerance everywhere: the largest difference of logits is at most 1e-4 of the
largest logit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm.utils
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Ministral3ForCausalLM, Mistral3ForConditionalGeneration

from magistral_convert import convert
from magistral_mlx.backend import mx
from magistral_mlx.cache.batch import batch_caches
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.config import QueryScaling, Yarn
from magistral_mlx.config_files import config_from_hf
from magistral_mlx.engine.images import encode_images
from magistral_mlx.model.magistral import MagistralModel
from tests.checkpoints import tiny_config, write_hf_checkpoint, write_mistral_checkpoint

ORIGINAL = 32
ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": ORIGINAL,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
Logits = NDArray[np.float32]


def config_of(*, vision: bool = False, rope: dict[str, Any] = ROPE, **text: Any) -> dict[str, Any]:
    """config.json of a tiny Ministral 3."""
    text = {"model_type": "ministral3", "rope_parameters": rope, **text}
    if not vision:
        text["architectures"] = ["Ministral3ForCausalLM"]
    return tiny_config(vision=vision, names="new", **text)


def write(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    return write_hf_checkpoint(folder, seed=seed, names="new", config=config)


def load(folder: Path) -> MagistralModel:
    return load_model(Checkpoint.open(folder), mx.float32)


def some_tokens(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(100, 1280, length).tolist()


def run(model: MagistralModel, tokens: list[int], caches: list[KVCache] | None = None) -> Logits:
    """(L, vocab_size)"""
    caches = model.make_caches() if caches is None else caches
    h = model(model.embed(mx.array([tokens])), caches)
    return np.array(model.logits(h)[0])


def expected(folder: Path, tokens: list[int]) -> Logits:
    reference = Ministral3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return reference(torch.tensor([tokens])).logits[0].numpy()


def assert_close(ours: Logits, theirs: Logits) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ministral3"), config_of())


@pytest.fixture(scope="module")
def model(folder: Path) -> MagistralModel:
    return load(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Logits:
    """After each of 200 tokens."""
    return expected(folder, some_tokens(200))


@pytest.mark.parametrize("length", [1, 20, ORIGINAL, ORIGINAL + 1, 200])
def test_every_position_within_the_original_context_and_past_it(
    model: MagistralModel, theirs: Logits, length: int
) -> None:
    assert_close(run(model, some_tokens(200)[:length]), theirs[:length])


def test_queries_past_the_original_context_do_grow(model: MagistralModel, theirs: Logits) -> None:
    """The check above would not pass without it."""
    decoder = model.language_model.model
    kept, decoder.query_scaling = decoder.query_scaling, None
    try:
        ours = run(model, some_tokens(200))
    finally:
        decoder.query_scaling = kept
    assert_close(ours[:ORIGINAL], theirs[:ORIGINAL])
    assert np.abs(ours - theirs)[ORIGINAL:].max() > 1e-3 * np.abs(theirs).max()


@pytest.mark.parametrize("first", [10, ORIGINAL, 150])
def test_tokens_one_by_one_are_those_of_a_prompt(
    model: MagistralModel, theirs: Logits, first: int
) -> None:
    tokens, caches = some_tokens(200), model.make_caches()
    found = [run(model, tokens[:first], caches)]
    found += [run(model, [token], caches) for token in tokens[first : first + 30]]
    assert_close(np.concatenate(found), theirs[: first + 30])


def test_rows_of_a_batch_stand_at_positions_of_their_own(model: MagistralModel) -> None:
    prompts = [some_tokens(length, seed=length) for length in (20, 31, 100)]
    for news in ([7, 8, 9], [10, 11, 12]):
        rows = [model.make_caches() for _ in prompts]
        for prompt, caches in zip(prompts, rows, strict=True):
            run(model, prompt, caches)
        tokens = mx.array([[new, new + 1] for new in news])  # two each: row 31 steps over the edge
        together = np.array(model.logits(model(model.embed(tokens), batch_caches(rows))))
        for n, (prompt, new) in enumerate(zip(prompts, news, strict=True)):
            assert_close(together[n], run(model, [*prompt, new, new + 1])[-2:])


def test_a_quantized_cache_holds_the_same_positions(model: MagistralModel) -> None:
    scheme = KVScheme(8, 8, window=0, first=0)
    tokens = some_tokens(90)
    caches = model.make_caches(scheme)
    run(model, tokens[:70], caches)
    ours = np.concatenate([run(model, [token], caches) for token in tokens[70:]])
    plain = run(model, tokens)[70:]
    assert np.abs(ours - plain).max() < 0.05 * np.abs(plain).max()


@pytest.mark.parametrize(
    "changes",
    [
        {"mscale_all_dim": 0.0},
        {"mscale": None, "mscale_all_dim": None},
        {"mscale": 0.7, "mscale_all_dim": 1.3},
        {"attention_factor": 1.2},
        {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False},
        {"factor": 0.9},
        {"original_max_position_embeddings": 100, "llama_4_scaling_beta": 0.5},
    ],
    ids=str,
)
def test_every_setting_of_the_rope(tmp_path: Path, changes: dict[str, Any]) -> None:
    rope = {key: value for key, value in (ROPE | changes).items() if value is not None}
    folder = write(tmp_path, config_of(rope=rope, num_hidden_layers=2))
    tokens = some_tokens(130)
    assert_close(run(load(folder), tokens), expected(folder, tokens))


def test_a_head_that_is_tied_to_the_embedding(tmp_path: Path) -> None:
    folder = write(tmp_path, config_of(tie_word_embeddings=True))
    tokens = some_tokens(60)
    assert_close(run(load(folder), tokens), expected(folder, tokens))


def test_mistrals_own_layout_is_the_same_model(
    tmp_path: Path, model: MagistralModel, theirs: Logits
) -> None:
    folder = write_mistral_checkpoint(tmp_path, config=config_of())
    ours = load(folder)
    assert ours.config.text == model.config.text
    assert_close(run(ours, some_tokens(200)), theirs)


def test_it_sees_images(tmp_path: Path) -> None:
    folder = write(tmp_path, config_of(vision=True))
    reference = Mistral3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    image = np.random.default_rng(1).standard_normal((3, 84, 140), dtype=np.float32)
    tokens = [1, 3, *([10] * 5 + [12]) * 2, *[10] * 5, 13, *some_tokens(40)]
    with torch.no_grad():
        theirs = (
            reference(
                input_ids=torch.tensor([tokens]),
                pixel_values=torch.tensor(image[None]),
                image_sizes=torch.tensor([[84, 140]]),
            )
            .logits[0]
            .numpy()
        )
    checkpoint = Checkpoint.open(folder)
    model = load_model(checkpoint, mx.float32)
    load_vision(model, checkpoint)
    h = model.embed(mx.array([tokens]))
    h[0, mx.array(np.flatnonzero(np.array(tokens) == 10))] = encode_images(model, [image])
    assert_close(np.array(model.logits(model(h, model.make_caches()))[0]), theirs)


@pytest.mark.parametrize("kind", ["text", "images", "mistral"])
def test_mlx_lm_reads_the_conversion_as_we_do(tmp_path: Path, kind: str) -> None:
    config = config_of(vision=kind == "images")
    if kind == "mistral":
        source = write_mistral_checkpoint(tmp_path / "source", config=config)
    else:
        source = write(tmp_path / "source", config)
    converted = convert(source, tmp_path / "4bit")
    model = load(converted)
    assert model.config.text == load(source).config.text
    peer, _ = mlx_lm.utils.load_model(converted)
    peer.set_dtype(mx.float32)
    tokens = some_tokens(100)
    assert_close(run(model, tokens), np.array(peer(mx.array([tokens]))[0]))


def test_older_files_spell_it_as_rope_scaling(model: MagistralModel) -> None:
    raw = config_of()
    nested = dict(raw.pop("rope_parameters"))
    theta, kind = nested.pop("rope_theta"), nested.pop("rope_type")
    older = raw | {"rope_theta": theta, "rope_scaling": nested | {"type": kind}}
    text = config_from_hf(older).text
    assert text == model.config.text
    assert text.yarn == Yarn(16.0, ORIGINAL, 32.0, 1.0, 1.0, 1.0)
    assert text.query_scaling == QueryScaling(0.1, ORIGINAL)
