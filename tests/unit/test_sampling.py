"""What the sampler draws, seen from outside: support, penalties, bans and repeatability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.engine.dry import DEFAULT_BREAKERS, Dry, breaker_tokens, dry_penalties
from magistral_mlx.engine.filters import keep_likely
from magistral_mlx.engine.sampler import DrawConstraints, Sampler
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.errors import InvalidOption

PROMPT = np.array([1, 2, 3], np.int32)


def some_logits(seed: int, vocab_size: int = 500) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.standard_normal((1, vocab_size)).astype(np.float32) * 3)


def sampler(vocab_size: int = 500, prompt: NDArray[np.int32] = PROMPT, **options: Any) -> Sampler:
    return Sampler(Sampling(**options), prompt, vocab_size)


def drawn(sampler: Sampler, logits: mx.array, position: int = 7, **constraints: Any) -> int:
    token = sampler.draw(logits, position, DrawConstraints(**constraints)).token.item()
    assert isinstance(token, int)
    return token


def kept(logits: mx.array, **filters: Any) -> list[int]:
    return np.flatnonzero(np.isfinite(np.array(keep_likely(logits, **filters)))).tolist()


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = some_logits(1)
    assert drawn(sampler(temperature=0), logits) == np.argmax(np.array(logits))


def test_filters_that_are_off_keep_everything() -> None:
    logits = some_logits(2)
    assert keep_likely(logits) is logits
    assert kept(logits, top_k=500) == list(range(500))


def test_one_likely_token_is_a_nucleus_by_itself() -> None:
    assert kept(mx.array([[0.0, 20.0, 1.0]]), top_p=0.95) == [1]


def test_a_nucleus_is_taken_of_what_top_k_left() -> None:
    """Of 0.4, 0.3, 0.2 and 0.1 the best two weigh 0.57 and 0.43 by themselves."""
    logits = mx.log(mx.array([[0.2, 0.4, 0.1, 0.3]]))
    assert kept(logits, top_p=0.6) == [1, 3]
    assert kept(logits, top_k=2, top_p=0.55) == [1]


def test_min_p_is_relative_to_the_likeliest() -> None:
    assert kept(mx.log(mx.array([[0.5, 0.26, 0.24]])), min_p=0.5) == [0, 1]


def test_the_likeliest_token_survives_every_filter() -> None:
    logits = some_logits(3)
    best = int(np.argmax(np.array(logits)))
    assert kept(logits, top_k=1, top_p=1e-9, min_p=1.0) == [best]


def test_a_masked_token_is_never_drawn() -> None:
    allowed = np.zeros(16, np.uint32)  # 500 ids
    for token in (3, 40, 499):
        allowed[token // 32] |= np.uint32(1 << token % 32)
    draws = {
        drawn(sampler(temperature=5, top_p=1), some_logits(4), position, allowed=allowed)
        for position in range(200)
    }
    assert draws == {3, 40, 499}


def test_a_banned_token_is_not_drawn_though_it_is_likeliest() -> None:
    logits = mx.array([[1.0, 9.0, 3.0]])
    assert drawn(sampler(3, temperature=0), logits, bias={1: -np.inf}) == 2


def test_a_banned_token_stays_out_whatever_its_bias() -> None:
    never = Sampler(Sampling(0, logit_bias={1: 100}), PROMPT, 3, banned=frozenset((1,)))
    assert drawn(never, mx.array([[1.0, 9.0, 3.0]])) == 2


def test_a_forced_token_is_taken_whatever_the_logits() -> None:
    assert drawn(sampler(), some_logits(5), forced=(123, "budget")) == 123


def test_a_logit_bias_makes_a_token_likely_or_not() -> None:
    logits = some_logits(6)
    best = int(np.argmax(np.array(logits)))
    assert drawn(sampler(temperature=0, logit_bias={17: 100}), logits) == 17
    assert drawn(sampler(temperature=0, logit_bias={best: -100}), logits) != best


def test_the_prompt_counts_for_repetition_but_not_for_presence() -> None:
    logits = mx.array([[0.0, 2.0, 1.9]])
    prompt = np.array([1], np.int32)
    assert drawn(sampler(3, prompt, temperature=0, repetition_penalty=1.5), logits) == 2
    assert drawn(sampler(3, prompt, temperature=0, presence_penalty=2), logits) == 1


def test_repetition_looks_back_as_far_as_its_window() -> None:
    logits = mx.array([[0.0, 2.0, 1.9, 1.8]])
    options = {"temperature": 0, "repetition_penalty": 1.5}
    prompt = np.array([1, 0, 0], np.int32)
    assert drawn(sampler(4, prompt, repetition_window=2, **options), logits) == 1
    assert drawn(sampler(4, prompt, repetition_window=3, **options), logits) == 2
    assert drawn(sampler(4, prompt, repetition_window=None, **options), logits) == 2


def test_frequency_counts_how_often_and_presence_whether() -> None:
    logits = mx.array([[0.0, 3.0, 2.5]])
    often = sampler(3, temperature=0, frequency_penalty=0.3)
    assert [drawn(often, logits) for _ in range(6)] == [1, 1, 2, 1, 2, 1]
    once = sampler(3, temperature=0, presence_penalty=0.6)
    assert [drawn(once, logits) for _ in range(4)] == [1, 2, 1, 1]


def test_a_token_depends_on_seed_and_position_alone() -> None:
    logits = some_logits(4)
    draw, again = sampler(temperature=1, seed=5), sampler(temperature=1, seed=5)
    forwards = [drawn(draw, logits, position) for position in range(30)]
    backwards = [drawn(again, logits, position) for position in reversed(range(30))]
    assert forwards == backwards[::-1]
    assert len(set(forwards)) > 5
    other = sampler(temperature=1, seed=6)
    assert [drawn(other, logits, position) for position in range(30)] != forwards


def test_a_filter_does_not_change_the_noise() -> None:
    """A draw that a narrower nucleus still allows is the same draw."""
    wide, narrow = sampler(temperature=1, top_p=1), sampler(temperature=1, top_p=0.6)
    logits = some_logits(8)
    inside = set(kept(logits, top_p=0.6))
    pairs = [(drawn(wide, logits, n), drawn(narrow, logits, n)) for n in range(100)]
    shared = [(a, b) for a, b in pairs if a in inside]
    assert len(shared) > 30
    assert all(a == b for a, b in shared)


@pytest.mark.parametrize(
    "wrong", [{"multiplier": -1}, {"base": 0.5}, {"allowed_length": 0}, {"range": 0}]
)
def test_a_dry_value_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=f"dry_{next(iter(wrong))} is .*must be"):
        Dry(**wrong)


def test_dry_weighs_a_longer_repetition_more() -> None:
    """After 5 6 7, which came before with 8, an 8 would make four; a 9 follows a lone 7."""
    tokens = np.array([5, 6, 7, 8, 1, 7, 9, 5, 6, 7], np.int32)
    dry = Dry(multiplier=0.8, base=2.0, allowed_length=1)
    assert dry_penalties(tokens, dry) == pytest.approx({8: 0.8 * 4, 9: 0.8})
    assert dry_penalties(tokens, Dry(0.8, 2.0, allowed_length=3)) == pytest.approx({8: 0.8})
    assert dry_penalties(tokens, Dry(0.8, 2.0, allowed_length=4)) == {}


def test_dry_does_not_look_past_breakers_or_its_range() -> None:
    tokens = np.array([5, 6, 7, 8, 1, 5, 6, 7], np.int32)
    dry = Dry(multiplier=1.0, base=2.0, allowed_length=2)
    assert dry_penalties(tokens, dry) == {8: 2.0}
    assert dry_penalties(tokens, Dry(1.0, 2.0, 2, breakers=frozenset([5]))) == {8: 1.0}
    assert dry_penalties(tokens, Dry(1.0, 2.0, 2, breakers=frozenset([7]))) == {}
    assert dry_penalties(tokens, Dry(1.0, 2.0, 2, range=5)) == {}


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(1, 4),
    st.frozensets(st.integers(0, 3), max_size=2),
)
@settings(max_examples=300)
def test_dry_finds_what_a_search_by_hand_finds(
    tokens: list[int], allowed: int, breakers: frozenset[int]
) -> None:
    expected: dict[int, float] = {}
    for end in range(len(tokens) - 1):
        length = 0
        while (
            length <= end
            and tokens[end - length] == tokens[-1 - length]
            and tokens[end - length] not in breakers
        ):
            length += 1
        following = tokens[end + 1]
        if length >= allowed and following not in breakers:
            penalty = 1.5 ** (length - allowed)
            expected[following] = max(penalty, expected.get(following, 0))
    found = dry_penalties(np.array(tokens, np.int32), Dry(1.0, 1.5, allowed, breakers=breakers))
    assert found == pytest.approx(expected)


def test_breakers_are_all_tokens_that_hold_one() -> None:
    vocabulary = Vocabulary([b"", b"a", b"a\n", b'":', b"b"], 0, lambda text: [])
    assert breaker_tokens(DEFAULT_BREAKERS, vocabulary) == {0, 2, 3}
    with pytest.raises(InvalidOption, match="breaker is empty"):
        breaker_tokens(["\n", ""], vocabulary)
