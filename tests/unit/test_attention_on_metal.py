"""Attention as it runs on Metal: the same values, through kernels that use the whole GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from magistral_mlx.backend import device_error_advice, dispatch_flops, mx
from magistral_mlx.bench.worker import launches, operations
from magistral_mlx.cache import attention
from magistral_mlx.cache.attention import attend
from magistral_mlx.cache.packed import PARTS, SPLIT_KEYS, attend_packed, visible_rows
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.cache.segments import Packed, Segment
from magistral_mlx.memory.known import MAGISTRAL_SMALL
from magistral_mlx.memory.peak import (
    GPU,
    Shape,
    packed_token_bytes,
    prefill_bytes,
)
from tests.metal import recorded_kernels, use_metal

pytestmark = pytest.mark.slow

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128  # of Magistral Small
SCALE = HEAD_DIM**-0.5


def random(shape: tuple[int, ...], seed: int) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def packed(x: mx.array, bits: int) -> Packed:
    return Packed(*mx.quantize(x, group_size=64, bits=bits), bits=bits, group_size=64)


def cache_of(keys: int, window: int, bits: tuple[int, int]) -> list[Segment]:
    """First tokens, packed tokens and a window, in spare capacity as a cache has them."""
    k, v = (random((1, KV_HEADS, keys + 64, HEAD_DIM), seed) for seed in (1, 2))
    plain = [random((1, KV_HEADS, 4 + window, HEAD_DIM), seed) for seed in (3, 4)]
    return [
        Segment(plain[0][:, :, :4], plain[1][:, :, :4], 4),
        Segment(packed(k, bits[0]).tokens(0, keys), packed(v, bits[1]).tokens(0, keys), keys),
        Segment(plain[0][:, :, 4:], plain[1][:, :, 4:], window),
    ]


class Few:
    """A cache of packed and plain tokens, in spare capacity, and a few queries."""

    def __init__(self, length: int, keys: int, bits: tuple[int, int], hidden: int = 0) -> None:
        window = 128 + hidden
        k, v = (random((1, KV_HEADS, keys + 512, HEAD_DIM), seed) for seed in (1, 2))
        rows = [random((1, KV_HEADS, 5 + window + 9, HEAD_DIM), seed) for seed in (3, 4)]
        mx.eval(rows)
        plain_k, plain_v = (x[:, :, : 5 + window] for x in rows)
        self.q = random((1, HEADS, length, HEAD_DIM), 5)
        spare = packed(k, bits[0]).tokens(0, keys + 4 + window)
        self.packed = Segment(spare, packed(v, bits[1]).tokens(0, keys), keys)
        mx.eval([part for x in self.packed if isinstance(x, Packed) for part in x.parts])
        self.plain = Segment(plain_k, plain_v, 5 + window)
        self.visible = visible_rows(4 + window, 4, hidden, length)
        center, seen_packed = plain_k[:, :, :1], self.packed.tokens(0, keys)
        self.segments = [
            Segment(plain_k[:, :, 1:5] - center, plain_v[:, :, 1:5], 4),
            seen_packed,
            Segment(plain_k[:, :, 5 + hidden :] - center, plain_v[:, :, 5 + hidden :], 128),
        ]

    def attend(self, workspace: int = attention.WORKSPACE) -> mx.array:
        y = attend_packed(
            self.q * SCALE, self.packed, self.plain, self.visible, workspace=workspace
        )
        assert y is not None
        return y


@pytest.mark.parametrize(("bits", "hidden"), [((8, 8), 0), ((6, 4), 64), ((5, 3), 131)], ids=str)
@pytest.mark.parametrize("keys", [1024, 2112, 5184], ids=str)
@pytest.mark.parametrize("length", [1, 2, 5, 16])
def test_attention_over_packed_values_is_that_of_the_cpu(
    length: int, keys: int, bits: tuple[int, int], hidden: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Few(length, keys, bits, hidden)
    expected = np.array(attend(few.q, few.segments, scale=SCALE))
    use_metal(monkeypatch)
    np.testing.assert_allclose(np.array(few.attend()), expected, atol=2e-6)


@pytest.mark.parametrize("keys", [1024, 4160, 12288], ids=str)
def test_a_decoded_token_splits_the_keys_over_threadgroups(
    keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qmm_n` would walk through all of them in 32 threadgroups."""
    use_metal(monkeypatch)
    with recorded_kernels() as kernels:
        Few(1, keys, (8, 8)).attend()
    scores, values = kernels
    assert scores.name == "qmv"
    assert values.name == "qvm_split_k" and values.keys <= 1280 and values.threadgroups >= 512


@pytest.mark.parametrize("length", [2, 3, 8, 16])
@pytest.mark.parametrize("keys", [4160, 12288, 70_016], ids=str)
def test_verified_draft_tokens_split_the_keys_over_threadgroups(
    length: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_metal(monkeypatch)
    with recorded_kernels() as kernels:
        Few(length, keys, (8, 8)).attend()
    values = [kernel for kernel in kernels if kernel.name in ("qmm_n", "qvm", "qvm_split_k")]
    assert max(kernel.keys for kernel in values) <= max(SPLIT_KEYS, keys / PARTS)
    assert min(kernel.threadgroups for kernel in values) >= 256


@pytest.mark.parametrize(("key_bits", "rows"), [(8, 4), (6, 1), (5, 1), (4, 4), (3, 1)])
def test_keys_of_other_bits_are_multiplied_by_a_row_at_a_time(
    key_bits: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`qmv_wide`, which MLX has for several rows of them from M3 on, would use 2 lanes of 8."""
    use_metal(monkeypatch)
    with recorded_kernels() as kernels:
        Few(1, 2048, (key_bits, 4)).attend()
    scores = kernels[0]
    assert (scores.name, scores.rows) == ("qmv", rows)


def test_a_decoded_token_takes_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of plain tokens are written in the place of others, and products of plain values add
    what packed ones gave; nothing is concatenated, or added by a kernel of its own."""
    use_metal(monkeypatch)
    counts = operations(mx, [Few(1, 2048, (8, 8)).attend()])
    assert counts["AddMM"] == counts["SliceUpdate"] == 1 and "Concatenate" not in counts
    assert launches(counts) <= 8


@pytest.mark.parametrize("length", [8, 16])
def test_the_parts_of_packed_values_are_views_of_the_cache(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix whose last two axes are contiguous is not copied (quantized.cpp, line 65)."""
    use_metal(monkeypatch)
    few = Few(length, 8192, (4, 4))
    mx.eval(few.q, few.plain[:2])
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(few.attend())
    scores = HEADS * length * 8324 * 4
    assert mx.get_peak_memory() - held < 3.5 * scores


# The GPU's watchdog


def flops(q: mx.array, k: mx.array) -> int:
    return 4 * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "of an image"])
@pytest.mark.parametrize("length", [1, 100, 700])
def test_a_call_of_attention_keeps_within_the_limit_and_changes_nothing(
    length: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = 1500
    q = random((1, 4, length, 64), 5)
    k, v = (random((1, 2, 2048, 64), seed)[:, :, :keys] for seed in (1, 2))
    held = Segment(k, v, keys)
    use_metal(monkeypatch)
    expected = np.array(attend(q, [held], scale=0.125, causal=causal))
    limit = 4 * 4 * 200 * keys * 64
    use_metal(monkeypatch, dispatch_flops=limit)
    fused, calls = mx.fast.scaled_dot_product_attention, list[int]()

    def record(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        calls.append(flops(q, k))
        return fused(q, k, v, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", record)
    np.testing.assert_allclose(
        np.array(attend(q, [held], scale=0.125, causal=causal)), expected, atol=1e-6
    )
    assert max(calls) <= limit
    assert len(calls) == -(-length // 192)


@pytest.mark.parametrize(
    ("architecture", "keys", "queries"),
    [
        ("applegpu_g13g", 32_768, 2048),
        ("applegpu_g13g", 131_072, 512),
        ("applegpu_g16p", 40_960, 1600),
        ("unknown", 65_536, 1024),
        ("applegpu_g14s", 131_072, 1024),
        ("applegpu_g15d", 131_072, 2048),
    ],
)
def test_the_limit_of_a_call_depends_on_the_chip(
    architecture: str, keys: int, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chunk of 2,048 tokens in a layer of Magistral Small."""
    use_metal(monkeypatch, dispatch_flops=dispatch_flops(architecture))
    calls = list[int]()

    def record(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        calls.append(q.shape[2])
        return mx.zeros((1, 1, q.shape[2], 1))

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", record)
    never_computed = mx.zeros((1, KV_HEADS, keys, HEAD_DIM))
    held = Segment(never_computed, never_computed, keys)
    attend(mx.zeros((1, HEADS, 2048, HEAD_DIM)), [held], scale=SCALE)
    assert calls[0] == queries and sum(calls) == 2048


def test_an_error_of_the_watchdog_says_what_to_do() -> None:
    told = device_error_advice(
        "[METAL] Command buffer execution failed: Impacting Interactivity (0000000e)"
    )
    assert "smaller context" in told and "macOS stopped the GPU" in told
    assert "macOS" not in device_error_advice("[METAL] Insufficient Memory")


# Memory


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)], ids=str)
@pytest.mark.parametrize("heads_at_once", [1, 3, 8])
def test_dequantized_heads_keep_to_the_workspace(
    heads_at_once: int, bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all arrays that Metal holds until a command buffer is done."""
    keys, queries = 4096, 64
    segments = cache_of(keys, queries, bits)
    total = sum(segment.length for segment in segments)
    packed_bytes = segments[1].packed_bytes // KV_HEADS
    a_head = attention.dequantized_bytes(total, HEAD_DIM, 4) + packed_bytes
    q = random((1, HEADS, queries, HEAD_DIM), 5)
    expected = np.array(attend(q, segments, scale=SCALE))
    use_metal(monkeypatch)
    fused, calls = mx.fast.scaled_dot_product_attention, list[int]()

    def record(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        calls.append(k.shape[1])
        return fused(q, k, v, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", record)
    y = attend(q, segments, scale=SCALE, workspace=heads_at_once * a_head)
    assert calls[0] == max(calls) == heads_at_once and sum(calls) == KV_HEADS
    np.testing.assert_allclose(np.array(y), expected, atol=2e-6)


@pytest.mark.parametrize("bits", ["8/8", "6/6", "5/4"])
@pytest.mark.parametrize("context", [8192, 40_960, 131_072])
def test_a_plan_for_metal_counts_arrays_that_the_device_still_holds(
    context: int, bits: str
) -> None:
    """Four plain arrays and a copy of the packed ones of what is dequantized, and masks, within the
    workspace; nothing is copied when tokens leave the window."""
    config, scheme = MAGISTRAL_SMALL, KVScheme.parse(bits)
    text = config.text
    packed = packed_token_bytes(text, scheme, 2)
    token = 4 * text.num_key_value_heads * text.head_dim * 2 + packed
    shape = Shape(prompt=context, answer=0, chunk=1)
    dequantized = min(GPU.workspace, context * token)
    assert prefill_bytes(config, scheme, shape, GPU) == pytest.approx(dequantized, abs=8 << 20)
