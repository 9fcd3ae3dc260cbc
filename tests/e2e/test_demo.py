"""The main job on the demo model: convert to 4 bits, then answer held-out questions rightly.

Everything is the real path: our converter, our loader, our prompt, our decoding, greedy.
The scores over 200 cases of each kind stand in magistral_mlx/demo/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_convert import convert
from magistral_mlx import Magistral
from magistral_mlx.backend import mx
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.chat.prompt import Prompt
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.demo.cases import KINDS, Case, Kind, cases, is_right
from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.images import encode_images
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.model.magistral import MagistralModel

COUNT = 25  # of each kind; one may be wrong


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert("demo", tmp_path_factory.mktemp("demo") / "4bit")


@pytest.fixture(scope="module")
def magistral(folder: Path) -> Iterator[Magistral]:
    with Magistral.load(folder) as loaded:
        yield loaded


def held_out(kind: Kind) -> list[Case]:
    return list(cases(kind, "held_out", COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_questions_are_answered(magistral: Magistral, kind: Kind) -> None:
    wrong = []
    for case in held_out(kind):
        result = magistral.generate(case.question, case.images, temperature=0, max_tokens=96)
        assert result.finish_reason == "stop"
        assert result.thinking
        if not is_right(case, result.text):
            wrong.append((case.question, case.answer, result.thinking, result.text))
    assert len(wrong) <= 1, wrong


# A cache of 8 bits with no window and no first tokens, so that all of it is quantized

EIGHT = KVScheme.parse("8/8").without_window()
LOGITS_BOUND = 0.02  # of the largest logit, as KVScheme says


@pytest.fixture(scope="module")
def model(folder: Path) -> MagistralModel:
    checkpoint = Checkpoint.open(folder)
    model = load_model(checkpoint)
    load_vision(model, checkpoint)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_an_8_bit_cache_changes_no_answer(
    magistral: Magistral, model: MagistralModel, kind: Kind
) -> None:
    """`benchmarks.kv_answers` does the same for 200 cases of each kind."""
    prompts = [magistral.prompt(case.question, case.images) for case in held_out(kind)]
    eos = magistral.tokenizer.special.eos
    assert answers(model, prompts, EIGHT, eos) == answers(model, prompts, KVScheme(), eos)


def answers(
    model: MagistralModel, prompts: list[Prompt], scheme: KVScheme, eos: int
) -> list[list[int]]:
    """The greedy output for each prompt, thinking included, all of them decoded together."""
    stop = frozenset([eos])
    generations = [
        Generation(
            model,
            SequenceInputs(
                prompt.tokens,
                prompt.images,
                Sampling(temperature=0),
                96,
                scheme=scheme,
                stop_tokens=stop,
            ),
        )
        for prompt in prompts
    ]
    for generation in generations:
        while generation.prefilling:
            generation.prefill()
    found: list[list[int]] = [[] for _ in generations]
    while not all(generation.ended for generation in generations):
        for output, tokens in zip(found, decode(model, generations), strict=True):
            output.extend(token.id for token in tokens)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_8_bit_cache_keeps_the_logits_within_their_bound(
    magistral: Magistral, model: MagistralModel, kind: Kind
) -> None:
    eos = magistral.tokenizer.special.eos
    for case in held_out(kind)[:3]:
        prompt = magistral.prompt(case.question, case.images)
        (output,) = answers(model, [prompt], KVScheme(), eos)
        full, eight = (logits_of(model, prompt, output, scheme) for scheme in (KVScheme(), EIGHT))
        error = np.abs(eight - full).max(axis=1) / np.abs(full).max(axis=1)
        assert 0 < error.max() <= LOGITS_BOUND


def logits_of(
    model: MagistralModel, prompt: Prompt, output: list[int], scheme: KVScheme
) -> NDArray[np.float32]:
    """(tokens of the output, vocab_size): the logits that each of them was drawn from."""
    caches = model.make_caches(scheme)
    is_image = prompt.tokens == model.config.image_token_id
    h = model.embed(mx.array(prompt.tokens[None]))
    if is_image.any():
        h[0, mx.array(np.flatnonzero(is_image))] = encode_images(model, prompt.images)
    found = [model.logits(model(h, caches)[:, -1:])[0]]
    for token in output[:-1]:
        found.append(model.logits(model(model.embed(mx.array([[token]])), caches))[0])
        mx.eval(found[-1])
    return np.array(mx.concatenate(found))
