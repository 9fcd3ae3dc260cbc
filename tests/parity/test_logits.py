"""Our model against transformers, on the same random weights and inputs, in float32.

The tolerance everywhere: the largest difference of logits is at most 1e-4 of the largest logit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import Mistral3ForConditionalGeneration, MistralForCausalLM

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.engine.images import encode_images
from magistral_mlx.engine.prefill import prefill
from magistral_mlx.model.adapters import Adapter
from magistral_mlx.model.magistral import MagistralModel
from tests.checkpoints import tiny_config, write_hf_checkpoint, write_mistral_checkpoint

IMG, BREAK, END = 10, 12, 13
Pixels = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("tiny"), seed=5, names="new")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return Mistral3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(folder: Path) -> MagistralModel:
    return load(folder)


def load(folder: Path) -> MagistralModel:
    checkpoint = Checkpoint.open(folder)
    model = load_model(checkpoint, mx.float32)
    if checkpoint.config.vision:
        load_vision(model, checkpoint)
    return model


def some_text(length: int, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return rng.integers(100, 1280, length).tolist()


def some_image(height: int, width: int, seed: int = 0) -> Pixels:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((3, height, width), dtype=np.float32)


def image_tokens(pixels: Pixels) -> list[int]:
    rows, columns = pixels.shape[1] // 28, pixels.shape[2] // 28
    row = [IMG] * columns
    return [*([*row, BREAK] * rows)[:-1], END]


def reference_logits(reference: Any, tokens: list[int], images: list[Pixels]) -> Pixels:
    """(L, vocab_size) logits of transformers for every position."""
    inputs: dict[str, Any] = {"input_ids": torch.tensor([tokens])}
    if images:
        height = max(p.shape[1] for p in images)
        width = max(p.shape[2] for p in images)
        padded = np.zeros((len(images), 3, height, width), np.float32)
        for image, p in zip(padded, images, strict=True):
            image[:, : p.shape[1], : p.shape[2]] = p
        inputs["pixel_values"] = torch.tensor(padded)
        inputs["image_sizes"] = torch.tensor([p.shape[1:] for p in images])
    with torch.no_grad():
        return reference(**inputs).logits[0].numpy()


def our_logits(
    model: MagistralModel,
    tokens: list[int],
    images: list[Pixels],
    chunk: int | None = None,
    adapter: Adapter | None = None,
) -> Pixels:
    """(vocab_size,) logits after the last position, through prefill and its chunks."""
    with model.adapters.using([adapter]):
        features = encode_images(model, images)
        steps = prefill(
            model, model.make_caches(), np.array(tokens, np.int32), features, chunk, adapter=adapter
        )
        while True:
            try:
                next(steps)
            except StopIteration as done:
                return np.array(done.value[0])


def assert_close(ours: Pixels, theirs: Pixels) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def several_images() -> tuple[list[int], list[Pixels]]:
    """Three images of different sizes and aspects with text before, between and after."""
    images = [
        some_image(28 * h, 28 * w, seed) for seed, (h, w) in enumerate([(3, 5), (7, 2), (1, 4)])
    ]
    tokens = some_text(5)
    for n, image in enumerate(images):
        tokens += image_tokens(image) + some_text(6 + n, seed=n)
    return tokens, images


@pytest.mark.parametrize("length", [1, 2, 3, 17, 130])
def test_text(model: MagistralModel, reference: Any, length: int) -> None:
    tokens = some_text(length)
    assert_close(our_logits(model, tokens, []), reference_logits(reference, tokens, [])[-1])


def test_every_position_of_a_text(model: MagistralModel, reference: Any) -> None:
    tokens = some_text(40)
    h = model(model.embed(mx.array([tokens])), model.make_caches())
    assert_close(np.array(model.logits(h)[0]), reference_logits(reference, tokens, []))


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (4, 4), (2, 9), (11, 3)])
def test_one_image(model: MagistralModel, reference: Any, rows: int, columns: int) -> None:
    image = some_image(28 * rows, 28 * columns)
    tokens = [1, 3, *image_tokens(image), *some_text(9)]
    ours, theirs = (
        our_logits(model, tokens, [image]),
        reference_logits(reference, tokens, [image])[-1],
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("chunk", [None, 4, 7])
def test_three_images_with_text_between(
    model: MagistralModel, reference: Any, chunk: int | None
) -> None:
    tokens, images = several_images()
    ours = our_logits(model, tokens, images, chunk)
    assert_close(ours, reference_logits(reference, tokens, images)[-1])


def test_memory_of_the_tower_does_not_grow_with_the_number_of_images(
    model: MagistralModel,
) -> None:
    """Eight images take what one takes, and their embeddings; one mask would take 64 times it.

    What one takes varies by a tenth with the timing of MLX's streams.
    """
    peaks = {}
    for count in (1, 8):
        images = [some_image(560, 560, seed) for seed in range(count)]
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        features = encode_images(model, images)
        assert features is not None
        peaks[count] = mx.get_peak_memory() - before
        one = features.nbytes // count
    assert peaks[8] < 1.25 * peaks[1] + 2 * 8 * one


@pytest.mark.parametrize("chunk", [700, 64, 1])
def test_a_long_prompt_in_chunks(model: MagistralModel, reference: Any, chunk: int) -> None:
    image = some_image(28 * 4, 28 * 6)
    tokens = some_text(300) + image_tokens(image)
    tokens += some_text(700 - len(tokens), seed=1)
    ours = our_logits(model, tokens, [image], chunk)
    assert_close(ours, reference_logits(reference, tokens, [image])[-1])


def test_decode_steps_equal_a_full_forward(model: MagistralModel, reference: Any) -> None:
    tokens, images = several_images()
    written = some_text(32, seed=9)
    caches = model.make_caches()
    steps = prefill(model, caches, np.array(tokens, np.int32), encode_images(model, images))
    for _ in steps:
        pass
    theirs = reference_logits(reference, tokens + written, images)
    for n, token in enumerate(written):
        h = model(model.embed(mx.array([[token]])), caches)
        assert_close(np.array(model.logits(h)[0, 0]), theirs[len(tokens) + n])


def test_a_trimmed_cache_is_as_good_as_new(model: MagistralModel) -> None:
    tokens = some_text(300)
    caches = model.make_caches()
    for _ in prefill(model, caches, np.array(tokens + some_text(50, 3), np.int32)):
        pass
    for cache in caches:
        cache.trim(len(tokens) - 1)
    h = model(model.embed(mx.array([tokens[-1:]])), caches)
    np.testing.assert_allclose(
        np.array(model.logits(h)[0, 0]), our_logits(model, tokens, []), rtol=0, atol=1e-4
    )


def test_a_decoder_without_vision(tmp_path: Path) -> None:
    config = tiny_config(vision=False, names="new")
    folder = write_hf_checkpoint(tmp_path, seed=2, names="new", config=config)
    reference = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = some_text(33)
    assert_close(our_logits(load(folder), tokens, []), reference_logits(reference, tokens, [])[-1])


def test_tied_embeddings(tmp_path: Path) -> None:
    config = tiny_config(vision=False, names="new", tie_word_embeddings=True)
    folder = write_hf_checkpoint(tmp_path, seed=2, names="new", config=config)
    reference = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = some_text(33)
    assert_close(our_logits(load(folder), tokens, []), reference_logits(reference, tokens, [])[-1])


@pytest.mark.parametrize("layout", ["classic", "mistral"])
def test_other_layouts_of_the_same_weights(
    tmp_path: Path, model: MagistralModel, layout: str
) -> None:
    if layout == "mistral":
        folder = write_mistral_checkpoint(tmp_path, seed=5)
    else:
        folder = write_hf_checkpoint(tmp_path, seed=5, names="classic", shards=3)
    tokens, images = several_images()
    ours = our_logits(load(folder), tokens, images)
    np.testing.assert_array_equal(ours, our_logits(model, tokens, images))
