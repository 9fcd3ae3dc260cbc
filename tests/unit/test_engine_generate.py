"""One generation: what it yields, how it ends, and what the next one may start from."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.engine.dry import Dry
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.thinking import ThinkingRules
from magistral_mlx.errors import InvalidOption
from magistral_mlx.events import Prefill
from tests.checkpoints import write_hf_checkpoint
from tests.engine_models import GREEDY, TableModel, ids_of, start, tiny_model, tokens_of

PROMPT = list(range(1100, 1140))
WARM = Sampling(temperature=1.0, seed=3)
EOS = 63


def test_a_stop_token_is_the_last_one() -> None:
    generation = start(TableModel.successors({}), [57], stop_tokens={EOS})
    assert ids_of(generation) == [58, 59, 60, 61, 62, EOS]
    assert generation.finish == "stop"


@pytest.mark.parametrize("minimum", [1, 2, 3])
def test_no_stop_token_comes_before_the_minimum(minimum: int) -> None:
    # 62 and 0 are followed by EOS; where that is banned, by 0, the first of all others.
    model = TableModel.successors({0: EOS})
    generation = start(model, [61], stop_tokens={EOS}, minimum=minimum)
    assert ids_of(generation) == [62, *[0] * (minimum - 1), EOS]
    assert generation.finish == "stop"


def test_the_limit_is_kept() -> None:
    generation = start(TableModel.successors({}), [0], limit=5)
    assert ids_of(generation) == [1, 2, 3, 4, 5]
    assert generation.finish == "length"


def test_progress_comes_before_tokens_chunk_by_chunk() -> None:
    steps = list(start(tiny_model(), PROMPT, chunk=16, limit=1))
    assert steps[:4] == [Prefill(0, 40), Prefill(16, 40), Prefill(32, 40), Prefill(40, 40)]
    assert len(steps) == 5


@pytest.mark.parametrize("scheme", ["full", "4/4"])
def test_each_chunk_may_have_a_size_of_its_own(scheme: str) -> None:
    prompt = [1100 + n % 60 for n in range(340)]
    kind: dict[str, Any] = {"scheme": KVScheme.parse(scheme), "snapshots": 4, "limit": 20}
    generation = start(tiny_model(), prompt, chunk=100, **kind)
    done = [generation.prefill(most).done for most in (7, 60, None, 30, 500)]
    assert done == [0, 60, 84, 114, 214]  # 84: a mark stands 256 tokens before the end
    assert ids_of(generation) == ids_of(start(tiny_model(), prompt, chunk=100, **kind))


CONTROLS: dict[str, dict[str, Any]] = {
    "log-probabilities": {"logprobs": 5},
    "a thinking budget that is not reached": {"thinking": ThinkingRules(34, 35, budget=500)},
    "DRY that finds nothing": {"sampling": replace(WARM, dry=Dry(allowed_length=40))},
    "a penalty of nothing": {"sampling": replace(WARM, presence_penalty=1e-30)},
    "small chunks": {"chunk": 7},
}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
def test_the_same_seed_gives_the_same_tokens_whatever_else_is_on(control: dict[str, Any]) -> None:
    plain = ids_of(start(tiny_model(), PROMPT, sampling=WARM, limit=60))
    assert len(set(plain)) > 20
    assert (
        ids_of(start(tiny_model(), PROMPT, **{"sampling": WARM, "limit": 60, **control})) == plain
    )


def test_logprobs_are_those_of_the_raw_logits() -> None:
    table = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) * 3
    sampling = Sampling(temperature=0.5, top_k=3, presence_penalty=1, logit_bias={4: 5})
    tokens = tokens_of(start(TableModel(table), [0], sampling=sampling, logprobs=4))
    expected = table - np.log(np.exp(table.astype(np.float64)).sum(axis=1, keepdims=True))
    for before, token in zip([0, *(token.id for token in tokens)], tokens, strict=False):
        assert token.logprob == pytest.approx(expected[before, token.id], abs=1e-5)
        best = np.argsort(-expected[before])[:4]
        assert [id_ for id_, _ in token.top] == best.tolist()
        assert [value for _, value in token.top] == pytest.approx(expected[before, best], abs=1e-5)


def test_logprobs_of_the_token_alone_name_no_others() -> None:
    token = tokens_of(start(tiny_model(), PROMPT, logprobs=0))[0]
    assert token.logprob is not None
    assert token.top == ()


def test_more_logprobs_than_tokens_are_refused() -> None:
    with pytest.raises(InvalidOption, match="logprobs is 1280"):
        start(tiny_model(), PROMPT, logprobs=1280)


def test_dry_breaks_a_loop_that_greedy_decoding_is_caught_in() -> None:
    """0 to 7 go round; a little less likely is the way out, from each to the id 8 above."""
    table = np.zeros((64, 64), np.float32)
    for token in range(64):
        table[token, (token + 1) % 8] = 6
        table[token, (token + 8) % 64] = 5
    caught = ids_of(start(TableModel(table), [0], limit=40))
    assert caught == [n % 8 for n in range(1, 41)]
    freed = ids_of(start(TableModel(table), [0], limit=40, sampling=replace(GREEDY, dry=Dry())))
    assert freed[:10] == [1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert freed[10:12] == [10, 3]


@pytest.mark.slow
@pytest.mark.parametrize("dry", [None, Dry()], ids=["no control", "a control"])
def test_decoding_does_not_copy_the_cache(dry: Dry | None) -> None:
    """Steps over a cache of 32 MB take far less than that on top of it, though they are slow.

    A step that is dispatched while the one before it is at work would copy the cache.
    """
    generation = start(SlowModel(), PROMPT, limit=8, sampling=Sampling(dry=dry))
    for cache in generation.caches:
        cache.reserve(16_384)
    while next(generation) != Prefill(40, 40):
        pass
    held = sum(cache.nbytes for cache in generation.caches)
    assert held > 30e6
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    assert len(ids_of(generation)) == 8
    assert mx.get_peak_memory() - before < held / 4  # the work of a step takes 4 MB


class SlowModel:
    """The tiny model with some 10 ms of work before its first layer."""

    def __init__(self) -> None:
        self._model = tiny_model()
        self._work = mx.ones((1024, 1024))
        mx.eval(self._work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, h: mx.array, caches: Any) -> mx.array:
        return self._model(h + 0 * mx.sum(self._work @ self._work), caches)


def test_samples_of_one_prompt_share_its_prefill() -> None:
    first = start(tiny_model(), PROMPT, sampling=WARM)
    ids_of(first)
    other = replace(WARM, seed=4)
    second = start(tiny_model(), PROMPT, sampling=other, prefix=first.prefilled)
    steps = list(second)
    assert steps[0] == Prefill(40, 40)
    afresh = ids_of(start(tiny_model(), PROMPT, sampling=other))
    assert [step.id for step in steps[1:] if not isinstance(step, Prefill)] == afresh
    third = start(tiny_model(), PROMPT, sampling=WARM, prefix=second.prefilled)
    assert ids_of(third) == ids_of(start(tiny_model(), PROMPT, sampling=WARM))


@pytest.mark.parametrize(
    ("length", "snapshots", "shared"), [(40, 0, 195), (75, 0, 0), (75, 3, 195)]
)
def test_samples_share_a_quantized_prefill(length: int, snapshots: int, shared: int) -> None:
    """Where caches can be trimmed back to it exactly: in the scheme's slack, or with snapshots."""
    prompt = (np.arange(195) * 7 % 180 + 1100).tolist()
    options: dict[str, Any] = {"scheme": KVScheme.parse("2/2"), "sampling": WARM, "logprobs": 0}
    options["snapshots"] = snapshots
    first = start(tiny_model(), prompt, limit=length, **options)
    expected = tokens_of(first)[:5]
    second = start(tiny_model(), prompt, limit=5, prefix=first.prefilled, **options)
    assert next(second) == Prefill(shared, 195)
    assert tokens_of(second) == expected


def test_a_generation_may_be_made_on_another_thread_than_the_one_that_runs_it() -> None:
    sampling = replace(WARM, presence_penalty=0.5, repetition_penalty=1.1, dry=Dry())
    options = {"sampling": sampling, "logprobs": 2, "thinking": ThinkingRules(34, 35, budget=5)}
    expected = ids_of(start(tiny_model(), PROMPT, **options))
    generation = start(tiny_model(), PROMPT, **options)
    with ThreadPoolExecutor(1) as worker:
        assert worker.submit(ids_of, generation).result() == expected


def test_a_turn_goes_on_from_the_caches_of_the_one_before() -> None:
    first = start(tiny_model(), PROMPT)
    answer = ids_of(first)
    prompt = [*PROMPT, *answer, 1200, 1201, 1202]
    held = first.caches[0].length
    assert held == len(PROMPT) + len(answer) - 1
    second = start(tiny_model(), prompt, prefix=ComputedPrefix(first.caches, held))
    steps = list(second)
    assert steps[0] == Prefill(held, len(prompt))
    afresh = ids_of(start(tiny_model(), prompt))
    assert [step.id for step in steps if not isinstance(step, Prefill)] == afresh


def test_an_edited_prompt_keeps_only_the_part_before_the_edit() -> None:
    first = start(tiny_model(), PROMPT)
    ids_of(first)
    edited = [*PROMPT[:20], 1250, *PROMPT[21:]]
    second = start(tiny_model(), edited, prefix=ComputedPrefix(first.caches, 20))
    assert ids_of(second) == ids_of(start(tiny_model(), edited))


def test_a_prompt_that_is_held_as_a_whole_runs_its_last_token_again() -> None:
    first = start(tiny_model(), PROMPT)
    expected = ids_of(first)
    second = start(tiny_model(), PROMPT, prefix=ComputedPrefix(first.caches, len(PROMPT)))
    assert ids_of(second) == expected


@pytest.mark.parametrize("taken", range(8))
def test_a_generation_that_was_stopped_leaves_caches_to_go_on_from(taken: int) -> None:
    first = start(tiny_model(), PROMPT, chunk=16, sampling=WARM)
    seen = [next(first) for _ in range(taken)]
    first.close()
    produced = [step.id for step in seen if not isinstance(step, Prefill)]
    held = first.caches[0].length
    prompt = [*PROMPT, *produced]
    assert held <= len(prompt)
    second = start(tiny_model(), prompt, prefix=ComputedPrefix(first.caches, held), sampling=WARM)
    assert ids_of(second) == ids_of(start(tiny_model(), prompt, sampling=WARM))


@pytest.mark.parametrize("held", [2, 5, 11, 12, 13, 17, 20, 27])
def test_images_that_are_held_are_not_needed_again(held: int, tmp_path: Path) -> None:
    """Two images of 2 x 3 and 3 x 2 tokens with rows ended by [IMG_BREAK], the last [IMG_END]."""
    checkpoint = Checkpoint.open(write_hf_checkpoint(tmp_path / "seeing"))
    model = load_model(checkpoint, mx.float32)
    load_vision(model, checkpoint)
    prompt = [1, 3, *image(2, 3), 1100, *image(3, 2), 1101, 4]
    pixels = [random_pixels(2, 3), random_pixels(3, 2)]
    first = start(model, prompt, images=pixels, limit=8)
    expected = ids_of(first)
    kept = ComputedPrefix(first.caches, held)
    assert ids_of(start(model, prompt, images=pixels, limit=8, prefix=kept)) == expected


def test_images_are_looked_at_one_a_step(tmp_path: Path) -> None:
    """So that whoever waits hears of each, and can stop between two."""
    checkpoint = Checkpoint.open(write_hf_checkpoint(tmp_path / "seeing"))
    model = load_model(checkpoint, mx.float32)
    load_vision(model, checkpoint)
    pixels = [random_pixels(1, 1) for _ in range(3)]
    looked: list[int] = []
    see = model.encode_image

    def counting(image: mx.array) -> mx.array:
        looked.append(1)
        return see(image)

    object.__setattr__(model, "encode_image", counting)
    generation = start(model, [1, 3, *image(1, 1) * 3, 4], images=pixels, limit=1)
    for count in (1, 2, 3):
        progress = generation.prefill()
        assert (progress.done, len(looked)) == (0, count)


def image(rows: int, columns: int) -> list[int]:
    tokens = ([10] * columns + [12]) * rows
    return [*tokens[:-1], 13]


def random_pixels(rows: int, columns: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(rows)
    return rng.standard_normal((3, rows * 28, columns * 28), dtype=np.float32)
