"""Speculation: the tokens of plain decoding, several a pass where guesses are right."""

from __future__ import annotations

import ctypes
import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest

from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.engine import sequence as engine
from magistral_mlx.engine.constraint import Grammar, GrammarCompiler
from magistral_mlx.engine.control import Control
from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.dry import Dry
from magistral_mlx.engine.loops import LoopRule
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.sequence import Token
from magistral_mlx.engine.speculate.costs import PLAIN, PassCosts, choose
from magistral_mlx.engine.speculate.drafter import Drafter
from magistral_mlx.engine.speculate.ngram import Suffixes
from magistral_mlx.engine.speculate.speculator import Speculation, Speculator
from magistral_mlx.engine.thinking import ThinkingRules
from magistral_mlx.errors import InvalidOption
from tests.engine_models import GREEDY, TableModel, ids_of, start, tiny_model, tokens_of
from tests.engine_models import tiny_vocabulary as vocabulary

WARM = Sampling(temperature=0.7, seed=3)
SHORT = replace(KVScheme.parse("6/4"), window=32, first=2)  # ages early, so that tests stay small
FREE_ROWS = PassCosts(((1, 1.0), (16, 1.0)))  # every guess is worth checking
FROM_TEXT = Speculation(FREE_ROWS)
SCHEMA = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 6, "maxItems": 9}
THINKING = ThinkingRules(34, 35, inside=True, budget=25, closing=(1100, 1101, 1102))


def prompt(seed: int, length: int = 40) -> list[int]:
    """Random tokens of which some stretches come again."""
    rng = np.random.default_rng(seed)
    fresh = rng.integers(1000, 1280, length).tolist()
    return fresh + fresh[length // 4 : length // 2] + fresh[:3]


class Knowing(Speculator):
    """Guesses what will come, to some point, and rubbish from there."""

    coming: Sequence[int] = ()
    rng = random.Random(0)

    def in_sight(self, most: int) -> bool:
        return self.rng.random() < 0.8

    def guesses(self, pending: int, most: int) -> list[int]:
        most = min(most, self._most)
        at = self._given + 1
        right = list(self.coming[at : at + self.rng.randrange(0, 12)])
        wrong = [self.rng.randrange(1000, 1280) for _ in range(self.rng.randrange(0, 4))]
        return [*right, *wrong][:most]


CASES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"sampling": WARM},
    "hot": {"sampling": Sampling(temperature=1.2, top_p=1.0, seed=9)},
    "filtered": {"sampling": Sampling(temperature=1, top_p=0.8, top_k=40, min_p=0.01, seed=2)},
    "8/8": {"scheme": KVScheme.parse("8/8"), "sampling": WARM},
    "an early 6/4": {"scheme": SHORT, "sampling": WARM},
    "an early 6/4, greedy": {"scheme": SHORT},
    "marks, and a prompt in pieces": {
        "scheme": SHORT,
        "snapshots": 3,
        "chunk": 16,
        "sampling": WARM,
    },
    "no window": {"scheme": KVScheme.parse("8/8").without_window()},
    "penalties": {
        "sampling": replace(WARM, repetition_penalty=1.2, frequency_penalty=0.3, logit_bias={7: 2})
    },
    "DRY": {"sampling": replace(GREEDY, dry=Dry())},
    "log-probabilities": {"sampling": WARM, "logprobs": 3},
    "a budget": {"thinking": THINKING, "vocabulary": vocabulary(), "sampling": WARM},
    "a budget, greedy": {"thinking": THINKING, "scheme": SHORT},
    "a minimum": {"thinking": replace(THINKING, minimum=9), "sampling": WARM},
    "a loop": {"thinking": replace(THINKING, budget=None, loops=LoopRule(2, 20, 32, 64))},
    "a grammar": {
        "grammar": GrammarCompiler(vocabulary()).json_schema(SCHEMA),
        "stop_tokens": {2},
        "sampling": WARM,
    },
    "all of it": {
        "grammar": GrammarCompiler(vocabulary()).json_schema(SCHEMA),
        "stop_tokens": {2},
        "thinking": THINKING,
        "sampling": replace(WARM, dry=Dry(), presence_penalty=0.5, repetition_penalty=1.1),
        "scheme": SHORT,
        "logprobs": 1,
    },
    "stop tokens": {"stop_tokens": set(range(1000, 1020)), "sampling": WARM},
}


def assert_same(tokens: Sequence[Token], expected: Sequence[Token]) -> None:
    """Log-probabilities differ where another rounding takes a key to its next quantized level."""
    assert [(t.id, t.forced) for t in tokens] == [(t.id, t.forced) for t in expected]
    for token, other in zip(tokens, expected, strict=True):
        assert (token.logprob is None) == (other.logprob is None)
        if token.logprob is not None:
            assert token.logprob == pytest.approx(other.logprob, abs=2e-3)
            assert [id_ for id_, _ in token.top] == [id_ for id_, _ in other.top]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tokens_are_those_of_plain_decoding(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With guesses from the text, and with some that are right for longer than those ever are."""
    for seed in range(2):
        given = {"prompt": prompt(seed), "limit": 70} | case
        plain = start(tiny_model(), **given)
        expected = tokens_of(plain)
        guessing = start(tiny_model(), **given, speculation=FROM_TEXT)
        assert_same(tokens_of(guessing), expected)
        with monkeypatch.context() as patch:
            patch.setattr(Knowing, "coming", [token.id for token in expected])
            patch.setattr(engine, "Speculator", Knowing)
            knowing = start(tiny_model(), **given, speculation=FROM_TEXT)
            assert_same(tokens_of(knowing), expected)
        for other in (guessing, knowing):
            assert (other.finish, other.thinking_end) == (plain.finish, plain.thinking_end)
            assert other.caches[0].length == plain.caches[0].length
        if case is not CASES["no window"]:
            assert knowing.passes < plain.passes == len(expected) - 1


def test_text_that_repeats_itself_takes_fewer_passes() -> None:
    circle = TableModel.successors({20: 0})
    plain = start(circle, [0], limit=200)
    guessing = start(circle, [0], limit=200, speculation=FROM_TEXT)
    assert ids_of(guessing) == ids_of(plain)
    assert (plain.passes, plain.drafted) == (199, 0)
    assert guessing.passes < 60
    assert guessing.accepted == 199 - guessing.passes
    assert guessing.drafted >= guessing.accepted


@pytest.mark.parametrize(
    ("step", "calls", "speculation"),
    [
        ("constraints", 1, None),  # of the first token
        ("constraints", 2, None),
        ("observe", 1, None),
        ("constraints", 100, FROM_TEXT),  # while guesses are verified
    ],
)
def test_a_sequence_that_failed_goes_with_its_last_reference(
    step: str, calls: int, speculation: Speculation | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, called = getattr(Control, step), count(1)

    def fail(*args: Any) -> Any:
        if next(called) >= calls:
            raise InvalidOption("the grammar failed before its end.")
        return original(*args)

    monkeypatch.setattr(Control, step, fail)
    circle = TableModel.successors({20: 0})
    sequence = start(circle, [0], limit=200, minimum=200, speculation=speculation)
    while sequence.prefilling:
        sequence.prefill()
    while not sequence.ended:
        decode(circle, [sequence])
    assert isinstance(sequence.error, InvalidOption)
    held = weakref.ref(sequence)
    del sequence
    assert held() is None


@pytest.mark.slow
def test_guessing_stops_where_checking_costs_more_than_it_gives() -> None:
    """Half of the guesses are right, and a pass over two tokens costs as much as two passes."""
    table = np.zeros((64, 64), np.float32)
    table[:, :2] = 20
    coin = TableModel(table)
    sampling = Sampling(temperature=1, top_p=1, seed=1)
    dear = Speculation(PassCosts(((1, 1.0), (2, 2.0), (8, 8.0))))
    generation = start(coin, [0, 1], limit=300, sampling=sampling, speculation=dear)
    assert ids_of(generation) == ids_of(start(coin, [0, 1], limit=300, sampling=sampling))
    assert generation.drafted == 0
    cheap = start(coin, [0, 1], limit=300, sampling=sampling, speculation=FROM_TEXT)
    tokens_of(cheap)
    assert cheap.drafted > 100


@pytest.mark.parametrize("scheme", ["full", "5/4"])
def test_a_draft_model_that_is_right_leaves_few_passes(scheme: str) -> None:
    caches = tiny_model().make_caches(KVScheme.parse(scheme))
    speculation = Speculation(
        FREE_ROWS, ngrams=False, drafter=Drafter(tiny_model(), caches, 0.1, 16)
    )
    for sampling in (WARM, GREEDY):
        given: dict[str, Any] = {"sampling": sampling, "limit": 60}
        plain = tokens_of(start(tiny_model(), prompt(5, 100), **given))
        generation = start(tiny_model(), prompt(5, 100), **given, speculation=speculation)
        assert_same(tokens_of(generation), plain)
        assert generation.passes < 30
        assert generation.accepted > 0.9 * generation.drafted


@pytest.mark.slow
def test_a_draft_model_that_is_wrong_is_left_alone_and_tried_again_now_and_then() -> None:
    """It goes from one sequence to another and back, each of them decoding for a while."""
    costs = PassCosts(((1, 1.0), (2, 1.5), (8, 3.0)))
    drafter = Drafter(tiny_model(1), tiny_model(1).make_caches(), 0.3, 16)
    sampling = Sampling(temperature=1.5, top_p=1, seed=5)
    given: dict[str, Any] = {"sampling": sampling, "limit": 200}
    plain = [tokens_of(start(tiny_model(), prompt(seed), **given)) for seed in (1, 2)]
    speculation = Speculation(costs, ngrams=False, drafter=drafter)
    generations = [
        start(tiny_model(), prompt(seed), **given, speculation=speculation) for seed in (1, 2)
    ]
    for generation in generations:
        while generation.prefilling:
            generation.prefill()
    given_out: list[list[Token]] = [[], []]
    while not all(generation.ended for generation in generations):
        for n, generation in enumerate(generations):
            for _ in range(70):
                given_out[n] += decode(tiny_model(), [generation])[0]
    for n, generation in enumerate(generations):
        assert_same(given_out[n], plain[n])
        assert 0 < generation.drafted < 60


def test_a_draft_model_reads_a_long_prompt_chunk_by_chunk_while_the_text_is_guessed_from() -> None:
    circle = [1100, 1101, 1102, 1103] * 100
    drafter = Drafter(tiny_model(), tiny_model().make_caches(), 0.1, 32)
    read: list[int] = []
    forward = drafter._read
    drafter._read = lambda tokens: (read.append(len(tokens)), forward(tokens))[1]  # type: ignore
    generation = start(
        tiny_model(), circle, limit=60, speculation=Speculation(FREE_ROWS, drafter=drafter)
    )
    assert_same(tokens_of(generation), tokens_of(start(tiny_model(), circle, limit=60)))
    assert read
    assert max(read) <= 64


def test_a_row_of_a_batch_guesses_nothing_and_one_that_is_left_alone_does() -> None:
    given: dict[str, Any] = {"speculation": FROM_TEXT, "prompt": prompt(1)}
    pair = [start(tiny_model(), **given, limit=limit) for limit in (20, 150)]
    expected = tokens_of(start(tiny_model(), prompt(1), limit=150))
    for generation in pair:
        while generation.prefilling:
            generation.prefill()
    tokens: list[Token] = []
    while not pair[1].ended:
        assert not pair[1].drafted or pair[0].ended
        tokens += decode(tiny_model(), pair)[1]
    assert_same(tokens, expected)
    assert pair[0].drafted == 0 < pair[1].accepted


@pytest.mark.slow
def test_a_generation_that_is_stopped_between_two_tokens_of_a_pass_holds_what_it_gave() -> None:
    circle = [1100, 1101, 1102, 1103] * 10
    for taken in range(1, 30, 4):
        first = start(tiny_model(), circle, limit=80, speculation=FROM_TEXT, scheme=SHORT)
        tokens = []
        while len(tokens) < taken:
            step = next(first)
            tokens += [step] if isinstance(step, Token) else []
        first.close()
        so_far = [*circle, *(token.id for token in tokens)]
        assert first.caches[0].length == len(so_far)
        again = ComputedPrefix(first.caches, len(so_far))
        rest = start(tiny_model(), so_far, limit=10, prefix=again, scheme=SHORT)
        assert ids_of(rest) == ids_of(start(tiny_model(), so_far, limit=10, scheme=SHORT))


class FailingMatcher:
    """A grammar that allows everything and fails after so many tokens."""

    def __init__(self, left: int) -> None:
        self._left = left

    def deep_copy(self) -> FailingMatcher:
        return FailingMatcher(self._left)

    def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
        ctypes.memset(address, 0xFF, size)

    def consume_token(self, token: int) -> None:
        self._left -= 1

    def is_error(self) -> bool:
        return self._left <= 0

    def get_error(self) -> str:
        return "too complex"


@pytest.mark.parametrize("after", range(1, 40, 3))
def test_a_grammar_that_fails_ends_the_row_at_the_token_where_it_would_have(after: int) -> None:
    """Not before: that it would fail after a guess is no error of the row."""
    grammar = Grammar(FailingMatcher(after), 1280)  # type: ignore[arg-type]
    given: dict[str, Any] = {"prompt": [1100, 1101] * 20, "grammar": grammar}
    plain, guessing = (
        start(tiny_model(), **given, speculation=speculation) for speculation in (None, FROM_TEXT)
    )
    told: list[list[int]] = []
    for generation in (plain, guessing):
        ids: list[int] = []
        try:
            while True:
                step = next(generation)
                ids += [step.id] if isinstance(step, Token) else []
        except InvalidOption:
            told.append(ids)
        except StopIteration:
            told.append([*ids, -1])
    assert told[0] == told[1]
    assert (plain.error is None) == (guessing.error is None) == (after > 30)


# Where guesses come from, and how many


def longest_match(tokens: Sequence[int], end: int) -> int:
    """Tokens that end the first `end` of them and stand earlier among these as well."""
    return max(
        (
            length
            for place in range(1, end)
            for length in range(1, place + 1)
            if tokens[place - length : place] == tokens[end - length : end]
        ),
        default=0,
    )


@pytest.mark.parametrize("vocabulary_size", [3, 5, 30])
def test_the_index_finds_the_longest_match(vocabulary_size: int) -> None:
    rng = random.Random(vocabulary_size)
    tokens: list[int] = []
    one_by_one = Suffixes()
    for _ in range(60):
        tokens.append(rng.randrange(vocabulary_size))
        one_by_one.add(tokens[-1])
        at_once = Suffixes()
        at_once.extend(tokens)
        for index in (one_by_one, at_once):
            length, place = index.length, index.place
            assert tokens[place - length : place] == tokens[len(tokens) - length :]
            assert place < len(tokens) or not length
            if vocabulary_size > 3:  # where places are few enough for all to be looked at
                assert length == longest_match(tokens, len(tokens))


def test_a_copy_is_gone_on_with_after_a_change() -> None:
    original = list(range(100, 140))
    index = Suffixes()
    index.extend([*original, 120, 7, 8, 9, 120])  # 120 comes again, and elsewhere
    for token in original[:19]:
        index.add(token)
    for token in (60, 61):  # in the place of 119
        index.add(token)
    index.add(120)
    assert index.guess(3) == [121, 122, 123]


def test_a_guess_goes_round_where_the_text_does() -> None:
    index = Suffixes()
    index.extend([7, 1, 2, 3, 1, 2, 3])
    assert index.expected == 1
    assert index.guess(8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert index.guess(0) == []


def test_the_newest_of_equal_matches_is_taken() -> None:
    index = Suffixes()
    index.extend([1, 2, 8, 1, 2, 9, 1, 2])
    assert index.guess(1) == [9]


def test_as_many_guesses_are_checked_as_pay() -> None:
    costs = PassCosts(((1, 1.0), (2, 2.0), (4, 2.5), (8, 6.5)))
    assert [costs(rows) for rows in (1, 2, 3, 4, 5, 8, 99)] == [1, 2, 2.25, 2.5, 3.5, 6.5, 6.5]
    assert choose([0.9] * 20, costs).guesses == 3
    assert choose([0.9] * 20, costs).gain == pytest.approx((1 + 0.9 + 0.81 + 0.729) / 2.5)
    assert choose([0.3] * 20, costs) is PLAIN
    assert choose([0.9] * 2, costs).guesses == 2
    assert choose([0.9] * 20, costs, each=0.5) is PLAIN
    assert choose([], costs) is PLAIN
