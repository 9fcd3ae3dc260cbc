"""Several generations in one pass: each one gets what it would get alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from magistral_mlx.backend import mx
from magistral_mlx.cache.batch import batch_caches
from magistral_mlx.cache.kv import make_cache
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.engine.constraint import Grammar, GrammarCompiler
from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.dry import Dry
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.sequence import Token
from magistral_mlx.engine.thinking import ThinkingRules
from magistral_mlx.errors import InvalidOption
from magistral_mlx.events import Prefill
from tests.engine_models import GREEDY, start, tiny_model, tiny_vocabulary, tokens_of

WARM = Sampling(temperature=1.0, seed=3)
SHORT = replace(KVScheme.parse("6/4"), window=16, first=2)  # ages early, so that tests stay small
VOCABULARY = tiny_vocabulary()
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def prompt(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1000, 1280, length).tolist()


def mixed() -> list[dict[str, Any]]:
    """Requests that have little in common."""
    close_early = ThinkingRules(34, 35, inside=True, budget=12, closing=(1100, 1101))
    options: list[dict[str, Any]] = [
        {},
        {"sampling": WARM},
        {"sampling": WARM, "scheme": KVScheme.parse("8/8"), "logprobs": 2},
        {"sampling": replace(WARM, seed=4), "scheme": SHORT, "limit": 50},
        {"sampling": replace(WARM, presence_penalty=1, repetition_penalty=1.3)},
        {"sampling": replace(GREEDY, dry=Dry()), "limit": 45},
        {"thinking": close_early, "vocabulary": VOCABULARY},
        {"thinking": close_early, "sampling": WARM, "scheme": SHORT, "vocabulary": VOCABULARY},
        {"grammar": GrammarCompiler(VOCABULARY).json_schema(SCHEMA), "stop_tokens": {2}},
        {"sampling": WARM, "stop_tokens": set(range(1000, 1050))},
        {"sampling": replace(WARM, temperature=0.3, top_p=0.9, top_k=50), "limit": 1},
    ]
    lengths = (3, 40, 180, 70, 25, 9, 14, 33, 5, 60, 21)
    return [
        {"prompt": prompt(length, n)} | chosen
        for n, (length, chosen) in enumerate(zip(lengths, options, strict=True))
    ]


def alone(model: Any, requests: Sequence[dict[str, Any]]) -> list[list[Token]]:
    return [tokens_of(start(model, **request)) for request in requests]


def together(model: Any, requests: Sequence[dict[str, Any]], seed: int) -> list[list[Token]]:
    """Let them join at random tokens, with a chunk of a prompt between two passes."""
    rng = random.Random(seed)
    generations = [start(model, **request, chunk=32) for request in requests]
    waiting = list(range(len(generations)))
    rng.shuffle(waiting)
    going: list[int] = []
    given: list[list[Token]] = [[] for _ in generations]
    while waiting or going:
        if waiting and rng.random() < 0.5:
            newest = generations[waiting[-1]]
            newest.prefill()
            if not newest.prefilling:
                going.append(waiting.pop())
        passed = decode(model, [generations[n] for n in going])
        for n, tokens in zip(going, passed, strict=True):
            given[n] += tokens
        going = [n for n in going if not generations[n].ended]
    return given


def comparable(tokens: Sequence[Token]) -> list[tuple[Any, ...]]:
    return [(token.id, token.forced) for token in tokens]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_each_gets_what_it_would_get_alone(seed: int) -> None:
    requests = mixed()
    expected = alone(tiny_model(), requests)
    for n, tokens in enumerate(together(tiny_model(), requests, seed)):
        assert comparable(tokens) == comparable(expected[n]), requests[n]
        for token, other in zip(tokens, expected[n], strict=True):
            assert (token.logprob is None) == (other.logprob is None)
            if token.logprob is not None:
                assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
                assert [id_ for id_, _ in token.top] == [id_ for id_, _ in other.top]


def test_one_that_leaves_spoils_nobody_and_can_go_on_later() -> None:
    requests = [request for request in mixed() if "scheme" not in request][:4]
    expected = alone(tiny_model(), requests)
    generations = [start(tiny_model(), **request) for request in requests]
    for generation in generations:
        fill(generation)
    given: list[list[Token]] = [[] for _ in generations]
    for step in range(30):
        if step == 7:
            generations[1].close()
        passed = decode(tiny_model(), generations)
        for n, tokens in enumerate(passed):
            given[n] += tokens
    assert comparable(given[1]) == comparable(expected[1][:7])
    for n in (0, 2, 3):
        assert comparable(given[n]) == comparable(expected[n][: len(given[n])])
        assert len(given[n]) == 30
    so_far = [*requests[1]["prompt"], *(token.id for token in given[1])]
    assert generations[1].caches[0].length == len(so_far)
    rest = start(
        tiny_model(),
        so_far,
        sampling=requests[1]["sampling"],
        limit=23,
        prefix=ComputedPrefix(generations[1].caches, len(so_far)),
    )
    assert comparable(tokens_of(rest)) == comparable(expected[1][7:])


def test_one_that_fails_ends_with_its_error_and_the_others_go_on() -> None:
    requests: list[dict[str, Any]] = [
        {"prompt": prompt(5, 1)},
        {"prompt": prompt(9, 2), "grammar": Grammar(FailingMatcher(), 1280)},  # type: ignore[arg-type]
        {"prompt": prompt(7, 3), "sampling": WARM},
    ]
    generations = [start(tiny_model(), **request) for request in requests]
    for generation in generations:
        fill(generation)
    given: list[list[Token]] = [[] for _ in generations]
    while not all(generation.ended for generation in generations):
        for n, tokens in enumerate(decode(tiny_model(), generations)):
            given[n] += tokens
    assert isinstance(generations[1].error, InvalidOption)
    assert len(given[1]) == 3
    with pytest.raises(InvalidOption, match="failed before its end: too complex"):
        next(generations[1])
    for n in (0, 2):
        assert generations[n].finish == "length"
        assert comparable(given[n]) == comparable(alone(tiny_model(), [requests[n]])[0])


class FailingMatcher:
    """A grammar that allows everything and fails at its third token."""

    def __init__(self) -> None:
        self._seen = 0

    def deep_copy(self) -> FailingMatcher:
        return FailingMatcher()

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        import ctypes

        ctypes.memset(address, 0xFF, size)

    def consume_token(self, token: int) -> None:
        self._seen += 1

    def is_error(self) -> bool:
        return self._seen >= 3

    def get_error(self) -> str:
        return "too complex"


def test_a_generation_that_is_iterated_over_can_join_others_and_leave_again() -> None:
    requests = [{"prompt": prompt(20, n), "sampling": replace(WARM, seed=n)} for n in range(3)]
    expected = alone(tiny_model(), requests)
    generations = [start(tiny_model(), **request) for request in requests]
    given: list[list[Token]] = [[] for _ in generations]
    for n, generation in enumerate(generations):
        steps = [next(generation) for _ in range(4 + n)]
        given[n] += [step for step in steps if not isinstance(step, Prefill)]
    for _ in range(5):
        for n, tokens in enumerate(decode(tiny_model(), generations)):
            given[n] += tokens
    for n, generation in enumerate(generations):
        given[n] += tokens_of(generation)
        assert comparable(given[n]) == comparable(expected[n])


def test_a_batch_of_one_is_the_caches_themselves() -> None:
    caches = SequenceCaches(make_cache(KVScheme()) for _ in range(2))
    assert batch_caches([caches]) is caches


def test_rows_of_a_batch_begin_where_their_own_caches_end() -> None:
    rng = np.random.default_rng(0)
    lengths, schemes = (5, 70, 1), (KVScheme(), SHORT, KVScheme.parse("8/8"))
    batched, single = (
        [SequenceCaches([make_cache(scheme)]) for scheme in schemes] for _ in range(2)
    )
    for length, row, other in zip(lengths, batched, single, strict=True):
        q, k, v = (mx.array(rng.standard_normal((1, heads, length, 64))) for heads in (4, 2, 2))
        for cache in (row[0], other[0]):
            cache.attend(q, k, v, scale=0.125)
    q, k, v = (mx.array(rng.standard_normal((3, heads, 1, 64))) for heads in (4, 2, 2))
    (cache,) = batch_caches(batched)
    assert np.array(cache.offset).tolist() == list(lengths)
    y = cache.attend(q, k, v, scale=0.125)
    for n, (row,) in enumerate(single):
        part = slice(n, n + 1)
        assert mx.array_equal(y[part], row.attend(q[part], k[part], v[part], scale=0.125))
    assert [row[0].length for row in batched] == [6, 71, 2]


def fill(generation: Generation) -> None:
    while generation.prefilling:
        generation.prefill()
