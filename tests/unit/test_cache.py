"""The caches against plain attention over everything that was ever put into them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import attend_dequantized
from magistral_mlx.cache.blocks import attend_blocks
from magistral_mlx.cache.kv import KVCache, make_cache
from magistral_mlx.cache.packed import attend_packed, visible_rows
from magistral_mlx.cache.scheme import BITS, FULL, SLACK, KVScheme
from magistral_mlx.cache.segments import Packed, Segment
from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.known import MAGISTRAL_SMALL
from magistral_mlx.memory.peak import cache_bytes

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
SCALE = HEAD_DIM**-0.5
Floats = NDArray[np.float32]

QUANTIZED = [KVScheme.parse(name) for name in ("8/8", "6/6", "6/4", "5/4", "4/4")]
SHORT = replace(KVScheme.parse("8/8"), window=32, first=2)  # ages early, so that tests stay small
FOUR = KVScheme.parse("4/4")  # with the window and the rotation of every day

# Root mean square error of attended values, as a share of their own, with everything quantized.
# The largest error of a few hundred values has too long a tail to have a bound that says much.
BOUNDS = {"8/8": 0.012, "6/6": 0.05, "6/4": 0.13, "5/4": 0.15, "4/4": 0.2}
LARGEST = {
    "8/8": 0.02,
    "6/6": 0.06,
    "6/4": 0.17,
    "5/4": 0.2,
    "4/4": 0.35,
}  # error over the largest value, of one sequence


class Inputs:
    """Queries, keys and values of a sequence, the same for the same seed.

    The keys of a head have a part in common, as in trained models.
    """

    def __init__(self, length: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.q = rng.standard_normal((1, HEADS, length, HEAD_DIM)).astype(np.float32)
        self.k = rng.standard_normal((1, KV_HEADS, length, HEAD_DIM)).astype(np.float32)
        self.k += 2 * np.random.default_rng(9).standard_normal((KV_HEADS, 1, HEAD_DIM), np.float32)
        self.v = rng.standard_normal((1, KV_HEADS, length, HEAD_DIM)).astype(np.float32)

    def feed(self, cache: KVCache, start: int, end: int) -> Floats:
        parts = (np.ascontiguousarray(x[:, :, start:end]) for x in (self.q, self.k, self.v))
        q, k, v = map(mx.array, parts)
        return np.array(cache.attend(q, k, v, scale=SCALE))

    def expected(self, start: int, end: int) -> Floats:
        """Plain causal attention in float64."""
        k = np.repeat(self.k[:, :, :end], HEADS // KV_HEADS, axis=1).astype(np.float64)
        v = np.repeat(self.v[:, :, :end], HEADS // KV_HEADS, axis=1).astype(np.float64)
        scores = self.q[:, :, start:end] @ k.swapaxes(-1, -2) * SCALE
        seen = np.arange(end)[None] <= np.arange(start, end)[:, None]
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True) @ v).astype(np.float32)


def feed_in_chunks(inputs: Inputs, cache: KVCache, ends: list[int], start: int = 0) -> Floats:
    """Feed up to each end in turn; the attended values of the last chunk."""
    for end in ends:
        y = inputs.feed(cache, start, end)
        start = end
    return y


def error(ours: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(ours - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("scheme", [FULL, SHORT, FOUR], ids=["full", "short", "4/4"])
def test_what_is_appended_without_queries_is_attended_to_later(scheme: KVScheme) -> None:
    inputs = Inputs(700)
    asked, told = make_cache(scheme), make_cache(scheme)
    inputs.feed(asked, 0, 690)
    told.append(mx.array(inputs.k[:, :, :690]), mx.array(inputs.v[:, :, :690]))
    assert told.length == 690
    assert np.array_equal(inputs.feed(told, 690, 700), inputs.feed(asked, 690, 700))


# The full cache is exact


@pytest.mark.parametrize("ends", [[1], [5, 6, 7], [300, 301, 700], [64, 128, 129, 600, 601]])
def test_the_full_cache_attends_to_everything(ends: list[int]) -> None:
    inputs = Inputs(ends[-1])
    start = ends[-2] if len(ends) > 1 else 0
    y = feed_in_chunks(inputs, make_cache(KVScheme()), ends)
    np.testing.assert_allclose(y, inputs.expected(start, ends[-1]), atol=2e-6)


def test_blocks_and_plain_agree() -> None:
    """A workspace of a few kilobytes forces many blocks, of queries and of keys."""
    inputs = Inputs(900)
    plain = feed_in_chunks(inputs, make_cache(KVScheme()), [200, 900])
    blocks = feed_in_chunks(inputs, make_cache(KVScheme(), workspace=1 << 16), [200, 900])
    np.testing.assert_allclose(blocks, plain, atol=1e-5)


def test_an_image_in_blocks_agrees_with_plain_attention() -> None:
    inputs = Inputs(700)
    q, k, v = (mx.array(x) for x in (inputs.q, inputs.k, inputs.v))
    plain = mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE)
    blocks = attend_blocks(q, [Segment(k, v, 700)], scale=SCALE, causal=False, workspace=1 << 18)
    np.testing.assert_allclose(np.array(blocks), np.array(plain), atol=1e-5)


# Every way to attend gives the same values


def packed(x: Floats, bits: int) -> Packed:
    return Packed(*mx.quantize(mx.array(x), group_size=64, bits=bits), bits, 64)


@pytest.mark.parametrize("length", [1, 3, 8, 16])
@pytest.mark.parametrize("bits", [(8, 8), (6, 4), (5, 3), (2, 6)])
def test_the_three_ways_agree(length: int, bits: tuple[int, int]) -> None:
    old, new, center = Inputs(400, seed=1), Inputs(45 + length, seed=2), Inputs(1, seed=3)
    q, c = mx.array(new.q[:, :, -length:]), mx.array(center.k)
    keys, values = packed(old.k, bits[0]), packed(old.v[:, :, :315], bits[1])
    k, v = mx.array(new.k), mx.array(new.v)
    plain = Segment(mx.concatenate([c, k], axis=2), mx.concatenate([c, v], axis=2), 46 + length)
    segments = [
        Segment(k[:, :, :5] - c, v[:, :, :5], 5),
        Segment(keys.tokens(0, 315), values, 315),
        Segment(k[:, :, 12:] - c, v[:, :, 12:], 33 + length),
    ]
    visible = visible_rows(45 + length, 5, 7, length)
    causal = length > 1
    by_blocks = attend_blocks(q, segments, scale=SCALE, causal=causal, workspace=1 << 28)
    # No head has room, one at a time has, and all have.
    for workspace in (1 << 8, 1 << 18, 1 << 28):
        by_packed = attend_packed(
            q * SCALE,
            Segment(keys.tokens(0, 360 + length), values, 315),
            plain,
            visible,
            workspace=workspace,
        )
        by_fused = attend_dequantized(q, segments, scale=SCALE, causal=causal, workspace=workspace)
        in_parts = attend_blocks(q, segments, scale=SCALE, causal=causal, workspace=workspace)
        assert (by_packed is None) == (workspace == 1 << 8)
        for y in (by_packed, by_fused, in_parts):
            if y is not None:
                np.testing.assert_allclose(np.array(y), np.array(by_blocks), atol=1e-5)


# Quantized caches stay within their bounds


@pytest.mark.parametrize("scheme", QUANTIZED, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("rotate", [False, True])
def test_a_scheme_stays_within_its_bound(scheme: KVScheme, rotate: bool) -> None:
    inputs = Inputs(600)
    cache = make_cache(replace(scheme.without_window(), rotate=rotate))
    feed_in_chunks(inputs, cache, [500, 599])
    y, expected = inputs.feed(cache, 599, 600), inputs.expected(599, 600)
    assert error(y, expected) < BOUNDS[scheme.name]
    assert np.abs(y - expected).max() < LARGEST[scheme.name] * np.abs(expected).max()


def test_rotation_saves_keys_with_outlier_channels() -> None:
    inputs = Inputs(600)
    inputs.k[..., 7] *= 30
    inputs.q[..., 7] /= 30
    errors = []
    for rotate in (False, True):
        cache = make_cache(replace(KVScheme.parse("4/4").without_window(), rotate=rotate))
        feed_in_chunks(inputs, cache, [599])
        errors.append(error(inputs.feed(cache, 599, 600), inputs.expected(599, 600)))
    assert errors[1] < errors[0] / 1.5


def test_what_all_keys_have_in_common_costs_no_bits() -> None:
    inputs = Inputs(600)
    errors = []
    for center in (False, True):
        cache = make_cache(replace(KVScheme.parse("4/4"), center=center))
        feed_in_chunks(inputs, cache, [300, 599])
        errors.append(error(inputs.feed(cache, 599, 600), inputs.expected(599, 600)))
    assert errors[1] < errors[0] * 0.7


@pytest.mark.parametrize("back", [0, 1, 3, 4])
def test_a_cache_that_is_filled_anew_is_centered_anew(back: int) -> None:
    first, second = Inputs(500, seed=1), Inputs(500, seed=2)
    second.k[:, :, back:] += 3
    cache, straight = make_cache(FOUR), make_cache(FOUR)
    first.feed(cache, 0, 500)
    cache.trim(back)
    for kind in ("q", "k", "v"):
        getattr(second, kind)[:, :, :back] = getattr(first, kind)[:, :, :back]
    second.feed(straight, 0, 499)
    second.feed(cache, back, 499)
    y, expected = (second.feed(one, 499, 500) for one in (cache, straight))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_the_newest_and_the_first_tokens_are_exact() -> None:
    """With keys that make old tokens invisible, a 4-bit cache is as good as a full one."""
    inputs = Inputs(600)
    inputs.k[:, :, 4:470] = -inputs.q[:, ::2, 599:600] * 9
    cache = make_cache(KVScheme.parse("4/4"))
    feed_in_chunks(inputs, cache, [300, 599])
    y, expected = inputs.feed(cache, 599, 600), inputs.expected(599, 600)
    assert np.abs(y - expected)[:, ::2].max() < 1e-4


@pytest.mark.parametrize("values", BITS)
@pytest.mark.parametrize("keys", BITS)
def test_a_cache_of_any_bits_allocates_what_a_plan_counts(keys: int, values: int) -> None:
    scheme = KVScheme.parse(f"{keys}/{values}")
    cache = make_cache(scheme)
    tokens = mx.zeros((1, 8, 500, 128), mx.bfloat16)
    cache.reserve(1500)
    cache.append(tokens, tokens)
    text = replace(MAGISTRAL_SMALL.text, num_hidden_layers=1)
    assert cache.nbytes == cache_bytes(text, scheme, 1500, 2)


@pytest.mark.slow
def test_a_quantized_cache_is_as_small_as_its_scheme_says() -> None:
    inputs = Inputs(4096)
    full, small = make_cache(KVScheme()), make_cache(KVScheme.parse("4/4").without_window())
    for cache in (full, small):
        cache.reserve(4096)
        feed_in_chunks(inputs, cache, [4096])
    # 4.5 to 5 bits a value (scales are float32 here) against 32, and 256 plain tokens of 4,096.
    assert small.nbytes < full.nbytes * 0.23


# What a token gets depends on what stands before it alone


@pytest.mark.slow
@settings(max_examples=20)
@given(
    scheme=st.sampled_from([SHORT, replace(SHORT, value_bits=4), *QUANTIZED]),
    chunks=st.lists(st.integers(1, 200), min_size=1, max_size=4),
)
def test_chunks_of_any_size_give_what_single_tokens_give(
    scheme: KVScheme, chunks: list[int]
) -> None:
    ends = [int(end) for end in np.cumsum(chunks)]
    inputs, cache = Inputs(ends[-1]), make_cache(scheme)
    singly = np.concatenate([inputs.feed(cache, n, n + 1) for n in range(ends[-1])], axis=2)
    start, cache = 0, make_cache(scheme)
    for end in ends:
        np.testing.assert_allclose(
            inputs.feed(cache, start, end), singly[:, :, start:end], rtol=1e-4, atol=1e-5
        )
        start = end


@pytest.mark.slow
@settings(max_examples=20)
@given(
    scheme=st.sampled_from([KVScheme(), SHORT, *QUANTIZED]),
    ends=st.lists(st.integers(1, 150), min_size=2, max_size=7),
    wanted=st.integers(1, 600),
    copied=st.booleans(),
)
def test_a_cache_goes_on_from_where_it_is_trimmable_as_if_it_had_never_gone_further(
    scheme: KVScheme, ends: list[int], wanted: int, copied: bool
) -> None:
    ends = [int(end) for end in np.cumsum(ends)]
    inputs = Inputs(ends[-1])
    cache, start = make_cache(scheme), 0
    for end in ends:
        inputs.feed(cache, start, end)
        cache.snapshot(3)
        start = end
    length = cache.trimmable(min(wanted, ends[-1]))
    marked = [end for end in ends[-2:] if end <= wanted]  # the last two are always kept
    assert length >= max([*marked, 0]) and length <= min(wanted, ends[-1])
    if copied:
        saved, cache = cache.save(length), make_cache(scheme)
        cache.restore(saved, length)
    cache.trim(length)
    straight = make_cache(scheme)
    if length:
        feed_in_chunks(inputs, straight, [length])
    for n in range(length, min(length + 80, ends[-1])):
        np.testing.assert_allclose(
            inputs.feed(cache, n, n + 1), inputs.feed(straight, n, n + 1), rtol=1e-4, atol=1e-5
        )


# Trimming


@pytest.mark.slow
@settings(max_examples=60)
@given(
    scheme=st.sampled_from(
        [KVScheme(), SHORT, replace(SHORT, value_bits=4), FOUR, replace(FOUR, rotate=False)]
    ),
    length=st.integers(1, 300),
    further=st.integers(1, SLACK),
    steps=st.integers(1, 3),
)
def test_a_trim_within_the_slack_leaves_no_trace(
    scheme: KVScheme, length: int, further: int, steps: int
) -> None:
    inputs, other = Inputs(length + further + steps), Inputs(length + further, seed=1)
    straight, detour = make_cache(scheme), make_cache(scheme)
    for n in range(length):
        inputs.feed(straight, n, n + 1)
        inputs.feed(detour, n, n + 1)
    for n in range(length, length + further):
        other.feed(detour, n, n + 1)
    detour.trim(length)
    for n in range(length, length + steps):
        np.testing.assert_array_equal(
            inputs.feed(detour, n, n + 1), inputs.feed(straight, n, n + 1)
        )


@pytest.mark.slow
@settings(max_examples=60)
@given(
    scheme=st.sampled_from([SHORT, SHORT.without_window(), *QUANTIZED]),
    chunks=st.lists(st.integers(1, 200), min_size=2, max_size=5),
    back=st.integers(0, 400),
)
def test_a_deep_trim_and_other_chunks_stay_within_the_bound(
    scheme: KVScheme, chunks: list[int], back: int
) -> None:
    ends = list(np.cumsum(chunks))
    inputs = Inputs(ends[-1] + 1)
    cache = make_cache(scheme)
    feed_in_chunks(inputs, cache, ends)
    cache.trim(max(0, ends[-1] - back))
    assert cache.length == max(0, ends[-1] - back)
    for n in range(cache.length, ends[-1] + 1, 37):
        y = inputs.feed(cache, n, min(n + 37, ends[-1] + 1))
    assert error(y, inputs.expected(n, ends[-1] + 1)) < BOUNDS[scheme.name]


@pytest.mark.parametrize("scheme", [KVScheme(), SHORT, SHORT.without_window()])
def test_a_restored_cache_goes_on_like_the_saved_one(scheme: KVScheme) -> None:
    inputs = Inputs(260)
    cache = make_cache(scheme)
    feed_in_chunks(inputs, cache, [100, 201, 203])
    other = make_cache(scheme)
    other.restore(cache.save(), cache.length)
    for n in range(203, 260):
        np.testing.assert_array_equal(inputs.feed(other, n, n + 1), inputs.feed(cache, n, n + 1))


def test_an_unknown_scheme_is_named_with_those_there_are() -> None:
    for name in ("7/4", "4/1", "8", "6/4/4", "Full", " 6/4", ""):
        with pytest.raises(InvalidOption, match=f"'{name}'; it must be full, or bits of keys and"):
            KVScheme.parse(name)


@pytest.mark.parametrize("length", [2, 4, 5, 6, 8, 9])
def test_a_short_prompt_is_masked_also_where_it_starts_the_first_tokens(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """On a backend whose attention is fused: the new tokens lie in two segments then."""
    from magistral_mlx.cache import attention

    here = replace(attention.backend(), fused_attention=True)
    monkeypatch.setattr(attention, "backend", lambda: here)
    inputs = Inputs(length)
    y = inputs.feed(make_cache(KVScheme.parse("8/8")), 0, length)
    np.testing.assert_allclose(y, inputs.expected(0, length), atol=1e-5)


@pytest.mark.parametrize("length", [1, 64])
@pytest.mark.parametrize("fused", [False, True])
def test_attention_over_a_long_quantized_cache_keeps_to_its_workspace(
    monkeypatch: pytest.MonkeyPatch, length: int, fused: bool
) -> None:
    """Also where the backend's attention is fused and not even one head has room."""
    from magistral_mlx.cache import attention

    here = replace(attention.backend(), fused_attention=fused)
    monkeypatch.setattr(attention, "backend", lambda: here)
    tokens, workspace = 8192, 1 << 20
    old, new = Inputs(tokens), Inputs(length, seed=1)
    segments = [
        Segment(packed(old.k, 4), packed(old.v, 4), tokens),
        Segment(mx.array(new.k), mx.array(new.v), length),
    ]
    q = mx.array(new.q)
    mx.eval(q, *(part for x in (segments[0].keys, segments[0].values) for part in x.parts))
    mx.eval(segments[1].keys, segments[1].values)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(attention.attend(q, segments, scale=SCALE, workspace=workspace))
    one_head = 2 * tokens * HEAD_DIM * 4
    assert mx.get_peak_memory() - before < 1.5 * workspace < one_head


@pytest.mark.slow
def test_decoding_over_a_long_quantized_cache_keeps_to_its_workspace() -> None:
    inputs = Inputs(8192)
    workspace = 1 << 20
    cache = make_cache(KVScheme.parse("4/4"), workspace)
    feed_in_chunks(inputs, cache, [4096, 8191])
    mx.eval(cache.state)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    inputs.feed(cache, 8191, 8192)
    whole = 2 * KV_HEADS * 8192 * HEAD_DIM * 4
    assert mx.get_peak_memory() - before < 1.5 * workspace < whole
