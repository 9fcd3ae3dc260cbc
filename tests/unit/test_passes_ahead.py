"""Passes of a deep model that are dispatched before the last one was read: same tokens, no copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from magistral_mlx.backend import mx
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.engine import sequence as sequences
from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.dry import Dry
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampler import SampledToken
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.sequence import Token
from magistral_mlx.engine.speculate.costs import PassCosts
from magistral_mlx.engine.speculate.drafter import Drafter
from magistral_mlx.engine.speculate.speculator import Speculation
from magistral_mlx.model.magistral import MagistralModel
from tests.engine_models import start, tiny_model, tokens_of
from tests.metal import use_metal

WARM = Sampling(temperature=0.7, seed=3)
FREE_ROWS = PassCosts(((1, 1.0), (16, 1.0)))
SCHEMES = {"full": KVScheme(), "8/8": KVScheme.parse("8/8")}
EACH_SCHEME = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(1000, 1280, length).tolist()


def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch a pass when the one before it has been read, as for a model of few layers."""
    monkeypatch.setattr(MagistralModel, "overlaps_passes", False)


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch passes as those of a deep model are."""
    monkeypatch.setattr(MagistralModel, "overlaps_passes", True)


def together(requests: Sequence[dict[str, Any]]) -> list[list[Token]]:
    """The tokens of requests that decode in the same passes, each from another pass on."""
    generations = [start(tiny_model(), **request) for request in requests]
    given: list[list[Token]] = [[] for _ in generations]
    passes = 0
    while not all(generation.ended for generation in generations):
        here = [n for n in range(len(generations)) if n * 3 <= passes]
        for n in here:
            while generations[n].prefilling:
                generations[n].prefill()
        some = [generations[n] for n in here]
        for n, tokens in zip(here, decode(tiny_model(), some), strict=True):
            given[n] += tokens
        passes += 1
    return given


@pytest.mark.parametrize(
    ("layers", "values", "deep"),
    [(2, 1 << 17, False), (40, 87 << 20, True), (40, 20 << 20, True), (26, 18 << 20, False)],
    ids=["tiny", "Magistral Small", "narrower", "3B"],
)
def test_a_model_is_deep_if_its_layers_fill_command_buffers(
    layers: int, values: int, deep: bool
) -> None:
    model = MagistralModel(tiny_model().config, mx.float32)
    layer = tiny_model().language_model.model.layers[0]
    layer = type(layer)(tiny_model().config.text, layer.self_attn.rope)
    layer.weights = mx.zeros((values,), mx.uint8)  # never computed
    model.language_model.model.layers = [layer] * layers
    assert model.overlaps_passes is deep


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("dry", [None, Dry()], ids=["no control", "a control"])
def test_a_pass_of_a_deep_model_is_dispatched_before_the_last_token_is_read(
    dry: Dry | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    read, evaluate = SampledToken.value.fget, mx.async_eval  # type: ignore[attr-defined]

    def value(draw: SampledToken) -> int:
        steps.append("read")
        return read(draw)

    def dispatch(*arrays: Any) -> None:
        steps.append("dispatch")
        evaluate(*arrays)

    generation = start(tiny_model(), prompt(40), limit=6, sampling=replace(WARM, dry=dry))
    while generation.prefilling:
        generation.prefill()
    generation.begin_decoding()
    monkeypatch.setattr(SampledToken, "value", property(value))
    monkeypatch.setattr(mx, "async_eval", dispatch)
    decode(tiny_model(), [generation])
    assert steps.index("dispatch") < steps.index("read")
    steps.clear()
    with monkeypatch.context() as patch:
        in_turn(patch)
        decode(tiny_model(), [generation])
    assert steps.index("read") < steps.index("dispatch")


@pytest.mark.usefixtures("ahead")
@EACH_SCHEME
def test_tokens_are_those_of_passes_in_turn(
    scheme: KVScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stops, limits, controls, log-probabilities, and rows that come and leave."""
    plain = start(tiny_model(), prompt(220), scheme=scheme, sampling=WARM, limit=12)
    stop = tokens_of(plain)[7].id
    requests: list[dict[str, Any]] = [
        {"prompt": prompt(220), "scheme": scheme, "sampling": WARM, "limit": 12} | options
        for options in (
            {"stop_tokens": frozenset([stop])},
            {"limit": 1},
            {"sampling": replace(WARM, dry=Dry(), seed=4), "limit": 9},
            {"sampling": replace(WARM, frequency_penalty=0.5), "logprobs": 2},
        )
    ]
    alone = [tokens_of(start(tiny_model(), **request)) for request in requests]
    with monkeypatch.context() as patch:
        in_turn(patch)
        expected = [tokens_of(start(tiny_model(), **request)) for request in requests]
    assert alone == expected
    assert [[token.id for token in row] for row in together(requests)] == [
        [token.id for token in row] for row in expected
    ]


@pytest.mark.usefixtures("ahead")
@EACH_SCHEME
@pytest.mark.parametrize("taken", [3, 9], ids=["stopped early", "to its end"])
def test_caches_hold_what_was_given_out_and_no_more(
    scheme: KVScheme, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was cancelled or has ended, what goes on from there is what it would have been."""
    first = start(tiny_model(), prompt(200), scheme=scheme, sampling=WARM, limit=9)
    ids = [token.id for token in _take(first, taken)]
    first.close()
    text = [*prompt(200), *ids, *prompt(20, seed=1)]
    held = first.caches[0].trimmable(200 + taken)
    assert held >= 200 + taken - 1
    going_on = start(
        tiny_model(),
        text,
        scheme=scheme,
        sampling=WARM,
        limit=5,
        prefix=ComputedPrefix(first.caches, held),
    )
    in_turn(monkeypatch)
    expected = start(tiny_model(), text, scheme=scheme, sampling=WARM, limit=5)
    assert [t.id for t in tokens_of(going_on)] == [t.id for t in tokens_of(expected)]


def _take(generation: Generation, count: int) -> list[Token]:
    tokens = []
    for step in generation:
        if isinstance(step, Token):
            tokens.append(step)
            if len(tokens) == count:
                break
    return tokens


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("deep", [True, False], ids=["deep", "in turn"])
def test_a_deep_draft_model_guesses_what_it_would_in_turn(
    deep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tokens_of(start(tiny_model(), prompt(100), sampling=WARM, limit=24))
    drafter = Drafter(tiny_model(), tiny_model().make_caches(), 0.1, 64)
    if not deep:
        in_turn(monkeypatch)
    guesses = drafter.guess(prompt(100), _sampler(), 5)
    again = drafter.guess([*prompt(100), *guesses[:2], 1100], _sampler(), 3)
    fresh = Drafter(tiny_model(), tiny_model().make_caches(), 0.1, 64)
    in_turn(monkeypatch)
    assert guesses == fresh.guess(prompt(100), _sampler(), 5)
    fresh = Drafter(tiny_model(), tiny_model().make_caches(), 0.1, 64)
    assert again == fresh.guess([*prompt(100), *guesses[:2], 1100], _sampler(), 3)
    speculation = Speculation(FREE_ROWS, ngrams=False, drafter=drafter)
    given = start(tiny_model(), prompt(100), sampling=WARM, limit=24, speculation=speculation)
    assert [t.id for t in tokens_of(given)] == [t.id for t in plain]


def _sampler() -> Any:
    return sequences.Sampler(WARM, np.array([], np.int32), 1280)


@EACH_SCHEME
def test_a_deep_model_does_not_copy_its_caches(
    scheme: KVScheme, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX would, if a pass that reads them had not been computed."""
    use_metal(monkeypatch)
    model = tiny_model(52)  # deep enough: on Metal four such layers are a command buffer at most
    assert model.overlaps_passes
    generation = start(model, prompt(250), scheme=scheme, sampling=WARM, limit=16)
    for cache in generation.caches:
        cache.reserve(16_384)
    while generation.prefilling:
        generation.prefill()
    decode(model, [generation])
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    while not generation.ended:
        decode(model, [generation])
    assert mx.get_peak_memory() - held < generation.caches[0].nbytes / 4
