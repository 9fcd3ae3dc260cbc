"""Prompt chunks over a quantized cache as on Metal: what each token sees, in few calls, no copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from magistral_mlx.backend import mx
from magistral_mlx.cache import chunk
from magistral_mlx.cache.attention import WORKSPACE, dequantized_bytes
from magistral_mlx.cache.chunk import mask_bytes
from magistral_mlx.cache.kv import FullKVCache
from magistral_mlx.cache.quantized import QuantizedKVCache
from magistral_mlx.cache.scheme import KVScheme
from tests.metal import use_metal

pytestmark = pytest.mark.slow

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64
SCHEMES = {
    "8/8": KVScheme.parse("8/8"),
    "4/4": KVScheme.parse("4/4"),
    "an early 8/4": replace(KVScheme.parse("8/4"), window=32, first=2),
    "all quantized, not rotated": replace(KVScheme.parse("8/8"), window=64, first=0, rotate=False),
}


def tokens(count: int, seed: int = 0) -> tuple[mx.array, mx.array, mx.array]:
    """Queries, keys and values."""
    random = np.random.default_rng(seed)
    return tuple(
        mx.array(random.standard_normal((1, heads, count, HEAD_DIM), dtype=np.float32))
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    )  # type: ignore[return-value]


def attended(
    cache: QuantizedKVCache, given: tuple[mx.array, mx.array, mx.array], ends: Iterable[int]
) -> np.ndarray:
    """What all tokens attend to, given in chunks."""
    parts = []
    for start, end in pairwise((0, *ends)):
        q, k, v = (x[:, :, start:end] for x in given)
        parts.append(np.array(cache.attend(q, k, v, scale=0.125)))
        mx.eval(cache.state)
    return np.concatenate(parts, axis=2)


@contextmanager
def counted(*functions: tuple[Any, str]) -> Iterator[Counter[str]]:
    """Calls of functions, by name."""
    calls: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in functions:
            patch.setattr(module, name, partial(_count, calls, name, getattr(module, name)))
        yield calls


def _count(calls: Counter[str], name: str, real: Callable[..., Any], *given: Any, **of: Any) -> Any:
    calls[name] += 1
    return real(*given, **of)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize(
    "ends",
    [(900,), (3, 80, 700, 709, 900), (200, 201, 264, 530, 900), tuple(range(100, 901, 100))],
    ids=str,
)
def test_a_token_sees_what_its_position_says_in_chunks_of_any_size(
    scheme: KVScheme, ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tokens(900)
    expected = attended(QuantizedKVCache(scheme), given, range(50, 901, 50))  # as on the CPU
    use_metal(monkeypatch)
    np.testing.assert_allclose(
        attended(QuantizedKVCache(scheme), given, ends), expected, rtol=0, atol=5e-6
    )


@pytest.mark.parametrize("heads_at_once", [0, 1, 2])
@pytest.mark.parametrize("masks", [0, 32 << 20], ids=["masks one by one", "masks together"])
def test_a_small_workspace_changes_nothing(
    heads_at_once: int, masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room for one head's arrays, blocks of keys are dequantized."""
    given, scheme = tokens(1500), SCHEMES["8/8"]
    expected = attended(QuantizedKVCache(scheme), given, (1500,))
    use_metal(monkeypatch)
    monkeypatch.setattr(chunk, "_MASKS", masks)
    seen = 1500 + 1500
    a_head = dequantized_bytes(seen, HEAD_DIM, 4) + seen * 2 * (HEAD_DIM + 8)
    room = heads_at_once * a_head + mask_bytes(1500, seen) if heads_at_once else 4096
    cache = QuantizedKVCache(scheme, workspace=room)
    with counted((mx.fast, "scaled_dot_product_attention")) as calls:
        np.testing.assert_allclose(attended(cache, given, (1500,)), expected, rtol=0, atol=5e-6)
    # Blocks of 512 queries, for as many heads as there is room for.
    assert calls.total() == {0: 1, 1: 6, 2: 3}[heads_at_once]  # 1: of the first tokens, all plain


@pytest.mark.parametrize("start", [200, 1024, 3000])
def test_a_chunk_reads_and_writes_the_quantized_tokens_once(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each block that leaves the window."""
    use_metal(monkeypatch)
    given = tokens(start + 1024)
    cache = QuantizedKVCache(SCHEMES["8/8"], WORKSPACE)
    attended(cache, given, (start,))
    functions = [(mx, "dequantize"), (mx, "quantize"), (mx.fast, "scaled_dot_product_attention")]
    with counted(*functions) as calls:
        cache.attend(*(x[:, :, start:] for x in given), scale=0.125)
    assert calls == {"dequantize": 2, "quantize": 2, "scaled_dot_product_attention": 2}


def test_a_call_of_attention_keeps_to_the_watchdogs_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given = tokens(1200)
    limit = 4 * HEADS * HEAD_DIM * 128 * 2400
    use_metal(monkeypatch, dispatch_flops=limit)
    fused, flops = mx.fast.scaled_dot_product_attention, list[int]()

    def record(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
        flops.append(4 * q.size * k.shape[2])
        return fused(q, k, v, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", record)
    attended(QuantizedKVCache(SCHEMES["8/8"]), given, (1200,))
    assert max(flops) <= limit and len(flops) == 10


@pytest.mark.parametrize(
    "ends", [(1000, 1300), (1000, *range(1001, 1200))], ids=["chunk", "decode"]
)
def test_no_step_copies_the_quantized_arrays(
    ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX would, if something else still referred to them when they are written."""
    use_metal(monkeypatch)
    given = tokens(ends[-1])
    cache = QuantizedKVCache(SCHEMES["8/8"])
    cache.reserve(1 << 18)
    attended(cache, given, ends[:1])
    mx.clear_cache()
    held = mx.get_active_memory()
    mx.reset_peak_memory()
    for start, end in pairwise(ends):
        y = cache.attend(*(x[:, :, start:end] for x in given), scale=0.125)
        mx.eval(y, cache.state)
    largest = max(array.nbytes for array in cache.state)
    assert mx.get_peak_memory() - held < largest


# Precision


@pytest.mark.parametrize("scheme", ["8/8", "6/4"])
@pytest.mark.parametrize("queries", [1, 8, 100], ids=["decode", "draft tokens", "chunk"])
@pytest.mark.parametrize("sharp", [1, 6], ids=["flat", "sharp"])
def test_a_model_in_bfloat16_loses_little_more_than_one_in_float32(
    scheme: str, queries: int, sharp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of 30 and more, and scales in bfloat16, would cost 5 to 10 %, here and without kernels
    that accumulate in float32."""
    use_metal(monkeypatch)
    given = [x.astype(mx.bfloat16) for x in tokens(1500)]
    given[0] = given[0] * sharp

    def error(dtype: mx.Dtype) -> float:
        cache = QuantizedKVCache(KVScheme.parse(scheme))
        q, k, v = (x.astype(dtype) for x in given)
        cache.append(k[:, :, :-queries], v[:, :, :-queries])
        y = cache.attend(*(x[:, :, -queries:] for x in (q, k, v)), scale=0.125)
        assert y.dtype == dtype
        exact = FullKVCache()
        q, k, v = (x.astype(mx.float32) for x in given)
        exact.append(k[:, :, :-queries], v[:, :, :-queries])
        expected = exact.attend(*(x[:, :, -queries:] for x in (q, k, v)), scale=0.125)
        return float(mx.linalg.norm(y.astype(mx.float32) - expected) / mx.linalg.norm(expected))

    assert error(mx.bfloat16) < error(mx.float32) + 0.012


def test_values_beyond_float16_are_cut_to_its_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    use_metal(monkeypatch)
    q, k, v = (x.astype(mx.bfloat16) for x in tokens(300))
    k[:, :, 5, 0] = 1e9
    v[:, :, 7, 1] = -1e9
    cache = QuantizedKVCache(replace(KVScheme.parse("8/8"), rotate=False))
    assert bool(mx.isfinite(cache.attend(q * 1e-3, k, v, scale=0.125)).all())
