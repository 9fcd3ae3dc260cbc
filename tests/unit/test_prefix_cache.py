"""What is kept of earlier prompts changes no output, harms no owner, and keeps to its budget."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.images import ImageKey, image_keys
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.prefix_cache import PrefixCache
from magistral_mlx.events import Prefill
from tests.checkpoints import tiny_config, write_hf_checkpoint
from tests.engine_models import GREEDY, tiny_model

pytestmark = pytest.mark.slow

SCHEMES = ["full", "8/8", "5/4"]
PLENTY = 1 << 30
IMAGE = 10  # the id of an image token
SIDE = 28  # pixels of an image token

Pixels = NDArray[np.float32]


@lru_cache
def seeing_model() -> Any:
    folder = Path(tempfile.mkdtemp(prefix="tiny-"))
    checkpoint = Checkpoint.open(write_hf_checkpoint(folder, config=tiny_config(layers=2)))
    model = load_model(checkpoint, mx.float32)
    load_vision(model, checkpoint)
    return model


def prefixes_of(model: Any, scheme: str = "full", budget: int = PLENTY) -> PrefixCache:
    kv = KVScheme.parse(scheme)
    return PrefixCache(budget, lambda: model.make_caches(kv), model.config.image_token_id)


def answer(
    model: Any,
    tokens: Sequence[int],
    prefixes: PrefixCache | None = None,
    *,
    scheme: str = "full",
    images: Sequence[Pixels] = (),
    limit: int = 20,
) -> tuple[list[int], int]:
    """The tokens that a model answers, and how many of the prompt's were held."""
    prompt, keys = np.array(tokens, np.int32), image_keys(model.config, images)
    request = SequenceInputs(
        prompt,
        images,
        GREEDY,
        limit,
        KVScheme.parse(scheme),
        chunk=128,
        image_keys=keys,
        image_features=prefixes,
        snapshots=4,
    )
    start = prefixes.take(prompt, keys) if prefixes else None
    generation = Generation(model, request, start)
    steps = list(generation)
    produced = [step.id for step in steps if not isinstance(step, Prefill)]
    if prefixes:
        put(prefixes, generation, [*tokens, *produced], keys)
    first = steps[0]
    assert isinstance(first, Prefill)
    return produced, first.done


def put(
    prefixes: PrefixCache,
    generation: Generation,
    tokens: Sequence[int],
    keys: Sequence[ImageKey] = (),
) -> None:
    prefixes.put(np.array(tokens, np.int32), keys, generation.caches, generation.prefilled)


def some_tokens(count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1100, 1280, count).tolist()


def image(width: int, height: int, seed: int) -> Pixels:
    """An image of so many image tokens."""
    pixels = np.random.default_rng(seed).standard_normal((3, height * SIDE, width * SIDE))
    return pixels.astype(np.float32)


# Nothing changes


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(3))
def test_conversations_that_share_beginnings_are_answered_as_if_nothing_was_held(
    scheme: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model, prefixes = tiny_model(), prefixes_of(tiny_model(), scheme)
    said: list[list[int]] = [some_tokens(150, seed)]
    for turn in range(12):
        before = said[rng.integers(len(said))]
        cut = len(before) if rng.random() < 0.5 else rng.integers(len(before))
        prompt = before[:cut] + some_tokens(int(rng.integers(1, 200)), 100 * seed + turn)
        produced, _ = answer(model, prompt, prefixes, scheme=scheme)
        assert produced == answer(model, prompt, scheme=scheme)[0]
        said.append(prompt + produced)
    assert prefixes.counts.hits >= 5
    assert prefixes.counts.reused > prefixes.counts.tokens // 4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_second_turn_goes_on_where_the_first_one_ended(scheme: str) -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model(), scheme)
    prompt = some_tokens(400, seed=1)
    produced, held = answer(model, prompt, prefixes, scheme=scheme, limit=150)
    assert held == 0
    second = prompt + produced + some_tokens(30, seed=2)
    expected = answer(model, second, scheme=scheme)[0]
    # But for the last token, which is never fed where the limit ends an answer.
    assert answer(model, second, prefixes, scheme=scheme) == (expected, 400 + 149)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_prompt_again_needs_no_prefill(scheme: str) -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model(), scheme)
    prompt = some_tokens(400, seed=1)
    expected, _ = answer(model, prompt, prefixes, scheme=scheme, limit=150)
    for _ in range(2):
        assert answer(model, prompt, prefixes, scheme=scheme, limit=150) == (expected, 400)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_another_question_about_a_document_starts_behind_the_document(scheme: str) -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model(), scheme)
    document = some_tokens(600, seed=1)
    answer(model, document + some_tokens(100, seed=2), prefixes, scheme=scheme, limit=200)
    second = document + some_tokens(90, seed=3)
    produced, held = answer(model, second, prefixes, scheme=scheme)
    assert produced == answer(model, second, scheme=scheme)[0]
    assert held == 600 if scheme == "full" else 440 <= held <= 600


def test_a_cancelled_prompt_is_kept_as_far_as_it_got() -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model())
    prompt = some_tokens(500, seed=1)
    generation = Generation(
        model, SequenceInputs(np.array(prompt, np.int32), (), GREEDY, 5, chunk=128)
    )
    while next(generation) != Prefill(256, 500):
        pass
    generation.close()
    put(prefixes, generation, prompt)
    assert answer(model, prompt, prefixes) == (answer(model, prompt)[0], 256)


# Owners


def test_a_long_conversation_is_whole_after_another_used_its_beginning() -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model())
    system, long = some_tokens(100, seed=1), some_tokens(400, seed=2)
    answer(model, system + long, prefixes)
    assert answer(model, system + some_tokens(50, seed=3), prefixes)[1] == 100
    assert answer(model, [*system, *long, 1200], prefixes)[1] == 500


def test_the_beginning_is_taken_over_where_there_is_no_room_for_two() -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model())
    system = some_tokens(300, seed=1)
    answer(model, system + some_tokens(400, seed=2), prefixes)
    prefixes.budget = prefixes.nbytes + 1000
    prompt = np.array(system + some_tokens(50, seed=3), np.int32)
    taken = prefixes.take(prompt, active_bytes=prefixes.nbytes)
    assert taken is not None and taken.length == 300
    assert prefixes.nbytes == 0


def test_what_is_taken_out_is_gone_until_it_is_put_back() -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model())
    prompt = some_tokens(100, seed=1)
    produced, _ = answer(model, prompt, prefixes)
    longer = np.array([*prompt, *produced, 1200], np.int32)
    taken = prefixes.take(longer)
    assert taken is not None and prefixes.take(longer) is None
    prefixes.put(longer, (), taken.caches)
    assert prefixes.take(longer) is not None


# Images


@pytest.mark.parametrize("scheme", SCHEMES)
def test_images_are_told_by_their_content(scheme: str) -> None:
    model, prefixes = seeing_model(), prefixes_of(seeing_model(), scheme)
    red, blue = image(4, 3, seed=1), image(4, 3, seed=2)
    before, after = some_tokens(150, seed=1), some_tokens(30, seed=2)
    prompt = before + [IMAGE] * 12 + after

    def ask(pixels: Pixels, prefixes: PrefixCache | None = None) -> tuple[list[int], int]:
        return answer(model, prompt, prefixes, scheme=scheme, images=[pixels])

    first, _ = ask(red, prefixes)
    assert ask(red, prefixes) == (first, len(prompt))
    other, held = ask(blue, prefixes)
    assert other == ask(blue)[0] != first
    assert held == 150 if scheme == "full" else held <= 150
    assert ask(red, prefixes)[0] == first


def test_the_tower_is_not_asked_about_an_image_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prefixes = seeing_model(), prefixes_of(seeing_model())
    looked = []
    see = type(model).encode_image
    monkeypatch.setattr(type(model), "encode_image", lambda *given: looked.append(1) or see(*given))
    red, blue = image(4, 3, seed=1), image(3, 4, seed=2)
    one, two = [1100] + [IMAGE] * 12, [1200, 1201] + [IMAGE] * 12 + [1100] + [IMAGE] * 12
    answer(model, [*one, 1101], prefixes, images=[red])
    assert len(looked) == 1
    produced, held = answer(model, [*two, 1101], prefixes, images=[blue, red])
    assert (held, len(looked)) == (0, 2)
    assert produced == answer(model, [*two, 1101], images=[blue, red])[0]
    assert (prefixes.counts.images, prefixes.counts.seen) == (3, 1)


# The budget


def test_what_was_used_least_recently_goes_first() -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model())
    prompts = [some_tokens(100, seed) for seed in range(4)]
    answer(model, prompts[0], prefixes)
    prefixes.budget = 3 * prefixes.nbytes
    for prompt in [*prompts[1:3], prompts[0], prompts[3]]:
        answer(model, prompt, prefixes)
    assert prefixes.nbytes <= prefixes.budget
    held = [answer(model, prompts[n], prefixes)[1] for n in (0, 2, 3)]
    assert held == [100, 100, 100]
    assert answer(model, prompts[1], prefixes)[1] == 0


def test_what_runs_has_the_first_claim_on_the_memory() -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model())
    for seed in range(3):
        answer(model, some_tokens(100, seed), prefixes)
    one = prefixes.nbytes // 3
    prefixes.budget = 3 * one
    prefixes.evict_for(one + 1)
    assert prefixes.nbytes == one
    prefixes.evict_for(4 * one)
    assert prefixes.nbytes == 0


def test_an_entry_larger_than_the_budget_is_not_kept() -> None:
    prefixes = prefixes_of(tiny_model(), budget=1000)
    prompt = some_tokens(50, seed=1)
    assert answer(tiny_model(), prompt, prefixes) == answer(tiny_model(), prompt, prefixes)
    assert prefixes.nbytes == 0


def test_release_gives_up_everything() -> None:
    model, prefixes = seeing_model(), prefixes_of(seeing_model())
    prompt = [IMAGE] * 12 + some_tokens(50, seed=1)
    answer(model, prompt, prefixes, images=[image(4, 3, seed=1)])
    assert prefixes.nbytes > 0
    prefixes.release()
    assert prefixes.nbytes == 0
    assert answer(model, prompt, prefixes, images=[image(4, 3, seed=1)])[1] == 0


def test_a_conversation_is_held_once_however_many_turns_it_has() -> None:
    model, prefixes = tiny_model(), prefixes_of(tiny_model())
    prompt = some_tokens(100, seed=1)
    for turn in range(4):
        produced, _ = answer(model, prompt, prefixes)
        prompt = prompt + produced + some_tokens(10, seed=turn)
    alone = prefixes_of(model)
    answer(model, prompt[:-10], alone)
    assert prefixes.nbytes <= 1.5 * alone.nbytes
