"""Attention over the segments of a cache, plain and packed.

`attend` chooses one of two implementations:

- fused: plain keys and values through `mx.fast.scaled_dot_product_attention`; packed ones are
  dequantized for as many heads at a time as the workspace allows;
- blocks: where the backend would materialize all scores, or where the workspace is too small for
  a single head: blocks of keys with an online softmax (arXiv 1805.02867), packed ones dequantized
  block by block.

Temporary arrays of both stay within the workspace, however long the context is. A quantized cache
has two more: `packed` for a few queries on Metal, `chunk` for many where kernels are fused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from magistral_mlx.backend import backend, dispatch_limit, mx
from magistral_mlx.cache.blocks import attend_blocks, score_bytes
from magistral_mlx.cache.segments import Segment

WORKSPACE = 256 << 20  # bytes of temporary arrays; a plan may lower it


def attend(
    q: mx.array,
    segments: Sequence[Segment],
    *,
    scale: float,
    causal: bool = True,
    workspace: int = WORKSPACE,
) -> mx.array:
    """Attend with q over all segments together.

    Args:
        q: (B, H, L, D).
        segments: (B, H_kv, S, D) each. The last L tokens of the last segment are those of the
            queries; the order of the segments does not matter otherwise.
        causal: each query sees the tokens up to its own; otherwise it sees all tokens.
        workspace: bytes that dequantized keys and values and scores may take at once. A block
            has at least 16 keys, even if they take more.

    Returns:
        (B, H, L, D)
    """
    length = q.shape[2]
    causal = causal and length > 1
    plain = len(segments) == 1 and isinstance(segments[0].keys, mx.array)
    if backend().fused_attention:
        if plain:
            return _fused(q, segments[0], scale, causal)
        return attend_dequantized(q, segments, scale=scale, causal=causal, workspace=workspace)
    queries = q.size // q.shape[3]
    if plain and queries * segments[0].length * score_bytes(q.itemsize) <= workspace:
        if length == 1:
            return _attend_rows(q, segments[0], scale)
        return _fused(q, segments[0], scale, causal)
    return attend_blocks(q, segments, scale=scale, causal=causal, workspace=workspace)


def _fused(q: mx.array, segment: Segment, scale: float, causal: bool) -> mx.array:
    """Run the fused kernel, in several calls if one would exceed the backend's limit."""
    k, v = segment.keys, segment.values
    assert isinstance(k, mx.array) and isinstance(v, mx.array)
    mask = "causal" if causal else None
    attention = partial(mx.fast.scaled_dot_product_attention, scale=scale, mask=mask)
    length, step = q.shape[2], queries_per_call(q, segment.length)
    if step >= length:
        return attention(q, k, v)
    parts = []
    for start in range(0, length, step):
        end = min(start + step, length)
        keys = segment.length - (length - end) if causal else segment.length
        parts.append(attention(q[:, :, start:end], k[:, :, :keys], v[:, :, :keys]))
        mx.eval(parts[-1])  # or the calls might be submitted together
    return mx.concatenate(parts, axis=2)


def _attend_rows(q: mx.array, segment: Segment, scale: float) -> mx.array:
    """Attend with one query, the heads of a group as rows of one product.

    MLX's fallback reads keys and values once for every head of a group.
    """
    k, v = segment.keys, segment.values
    assert isinstance(k, mx.array) and isinstance(v, mx.array)
    rows = (q * scale).reshape(q.shape[0], segment.kv_heads, -1, q.shape[3])
    weights = mx.softmax(rows @ k.swapaxes(-1, -2), axis=-1, precise=True)
    return (weights @ v).reshape(q.shape)


def queries_per_call(q: mx.array, keys: int) -> int:
    """Number of queries that may attend to `keys` in one call, a multiple of 64 if it can be."""
    limit = dispatch_limit()
    if limit is None:
        return q.shape[2]
    batch, heads, _, head_dim = q.shape
    queries = max(1, limit // (4 * batch * heads * head_dim * keys))
    return queries - queries % 64 if queries > 64 else queries


def attend_dequantized(
    q: mx.array, segments: Sequence[Segment], *, scale: float, causal: bool, workspace: int
) -> mx.array:
    """Run the fused kernel over dequantized copies of a few key-value heads at a time."""
    batch, heads, _, head_dim = q.shape
    kv_heads = segments[0].kv_heads
    group = heads // kv_heads
    total = sum(segment.length for segment in segments)
    packed_bytes = sum(segment.packed_bytes for segment in segments) // kv_heads
    bytes_a_head = batch * dequantized_bytes(total, head_dim, q.itemsize) + packed_bytes
    step = min(kv_heads, workspace // bytes_a_head)
    if step == 0:
        return attend_blocks(q, segments, scale=scale, causal=causal, workspace=workspace)
    parts = []
    for start in range(0, kv_heads, step):
        end = min(start + step, kv_heads)
        k = mx.concatenate([s.heads(start, end).plain_keys(q.dtype) for s in segments], axis=2)
        v = mx.concatenate([s.heads(start, end).plain_values(q.dtype) for s in segments], axis=2)
        part = q[:, start * group : end * group]
        parts.append(_fused(part, Segment(k, v, total), scale, causal))
        if step < kv_heads:
            mx.eval(parts[-1])  # or the arrays of all steps might be in memory at once
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def dequantized_bytes(tokens: int, head_dim: int, float_bytes: int) -> int:
    """Temporary bytes of one head's dequantized keys and values, without copies of packed ones.

    Keys and values are dequantized and then concatenated. On Metal all four arrays count: a command
    buffer holds its inputs until it is done (`gpu::eval` in mlx/backend/metal/eval.cpp, commit
    846d176). `mx.dequantize` also copies packed arrays that are parts of larger ones
    (`quantize_impl` in mlx/backend/metal/quantized.cpp, line 249).
    """
    return 4 * tokens * head_dim * float_bytes
