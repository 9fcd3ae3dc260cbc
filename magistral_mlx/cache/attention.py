"""Attention over the segments of a cache, plain and packed.

`attend` chooses one of three implementations:

- fused: plain keys and values through `mx.fast.scaled_dot_product_attention`; packed ones are
  dequantized for as many heads at a time as the workspace allows;
- packed: for a few queries, matrix products with the arrays as they are stored, quantized or
  plain, in which the heads of a group are rows;
- blocks: where the backend would materialize all scores, or where the workspace is too small for
  a single head: blocks of keys with an online softmax (arXiv 1805.02867), packed ones dequantized
  block by block.

Temporary arrays of all three stay within the workspace, however long the context is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.blocks import attend_blocks, hide_later, score_bytes
from magistral_mlx.cache.segments import Packed, Segment

WORKSPACE = 256 << 20  # bytes of temporary arrays; a plan may lower it
FEW_QUERIES = 8  # largest number of queries for the packed implementation
# A quantized matrix that is not transposed is multiplied on Metal by `qvm_split_k`, which splits
# the keys over threadgroups, for fewer than 4 rows, and else by `qmm_n`, in which some 32
# threadgroups walk through all keys (`QuantizedMatmul::eval_gpu`, mlx/backend/metal/quantized.cpp,
# lines 1804 to 1872 of commit 846d176).
_MATRIX_ROWS = 4
# A transposed one with keys of 64 or 128 channels has a kernel of its own, `qmv_quad`, for 2, 4 and
# 8 bits. For other bits a product of 2 to 12 rows may be given to `qmv_wide`, which divides the
# groups of a row among 8 lanes: of two groups of 64 channels, 6 lanes get none. A product of one
# row is given to `qmv`, which divides the channels among 32 (`dispatch_qmv`, lines 1739 to 1780).
_WIDE_ROWS = 12
SPLIT_KEYS = 1024  # keys of a part where `qmm_n` is used


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
        # The causal mask covers the last segment only, so all new tokens must lie in it.
        if length <= min(FEW_QUERIES, segments[-1].length):
            return attend_packed(q, segments, scale=scale, causal=causal, workspace=workspace)
        return attend_dequantized(q, segments, scale=scale, causal=causal, workspace=workspace)
    queries = q.size // q.shape[3]
    if plain and queries * segments[0].length * score_bytes(q.itemsize) <= workspace:
        if length == 1:
            # MLX's fallback reads keys and values once for every head of a group.
            return attend_packed(q, segments, scale=scale, causal=False, workspace=workspace)
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


def queries_per_call(q: mx.array, keys: int) -> int:
    """Number of queries that may attend to `keys` in one call, a multiple of 64 if it can be."""
    limit = backend().dispatch_flops
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


def attend_packed(
    q: mx.array, segments: Sequence[Segment], *, scale: float, causal: bool, workspace: int
) -> mx.array:
    """Multiply with the arrays as they are stored, for a few key-value heads at a time."""
    batch, heads, length, _ = q.shape
    kv_heads = segments[0].kv_heads
    group = heads // kv_heads
    total = sum(segment.length for segment in segments)
    bytes_a_head = batch * group * length * total * score_bytes(q.itemsize)
    step = min(kv_heads, workspace // bytes_a_head)
    if step == 0:
        return attend_blocks(q, segments, scale=scale, causal=causal, workspace=workspace)
    if step == kv_heads:
        return _attend_stored(q, segments, scale, causal)
    parts = []
    for start in range(0, kv_heads, step):
        end = min(start + step, kv_heads)
        some = [segment.heads(start, end) for segment in segments]
        parts.append(_attend_stored(q[:, start * group : end * group], some, scale, causal))
    return mx.concatenate(parts, axis=1)


def _attend_stored(
    q: mx.array, segments: Sequence[Segment], scale: float, causal: bool
) -> mx.array:
    """Attend with all heads at once; the heads of a group are rows of one matrix product."""
    batch, heads, length, head_dim = q.shape
    kv_heads = segments[0].kv_heads
    rows = (q * scale).reshape(batch, kv_heads, heads // kv_heads * length, head_dim)
    scores = [_scores(rows, segment) for segment in segments]  # (B, H_kv, rows, S)
    if causal:
        scores[-1] = hide_later(scores[-1], length, segments[-1].length, 0)
    weights = mx.softmax(mx.concatenate(scores, axis=-1), axis=-1, precise=True)
    start, y = 0, None
    plain: list[tuple[mx.array, mx.array]] = []
    for segment in segments:
        seen = weights[..., start : start + segment.length]
        start += segment.length
        if isinstance(segment.values, Packed):
            part = _weighted(seen, segment.values, length)
            y = part if y is None else y + part
        else:
            plain.append((seen, segment.values))
    for seen, values in plain:  # last, as their products add what is there in the same kernel
        y = seen @ values if y is None else mx.addmm(y, seen, values)
    assert y is not None
    return y.reshape(batch, heads, length, head_dim)


def _scores(rows: mx.array, segment: Segment) -> mx.array:
    """rows @ keys.T: (B, H_kv, rows, D) -> (B, H_kv, rows, length)."""
    keys = segment.keys
    if not isinstance(keys, Packed):
        return rows @ keys.swapaxes(-1, -2)
    has_kernel = keys.bits in (2, 4, 8)
    if backend().name == "metal" and not has_kernel and 1 < rows.shape[2] <= _WIDE_ROWS:
        return keys.unsqueezed().matmul(rows[:, :, :, None], transpose=True).squeeze(3)
    return keys.matmul(rows, transpose=True)


def _weighted(weights: mx.array, values: Packed, length: int) -> mx.array:
    """weights @ values: (B, H_kv, group * length, S) and (B, H_kv, S, D) -> (B, H_kv, rows, D)."""
    rows, keys = weights.shape[2:]
    if backend().name != "metal" or rows < _MATRIX_ROWS:
        return values.matmul(weights, transpose=False)
    if length == 1:
        # One row in each product, as mlx-lm has it: threadgroups of the heads of a group read the
        # same values at about the same time.
        return values.unsqueezed().matmul(weights[:, :, :, None], transpose=False).squeeze(3)
    whole = keys - keys % SPLIT_KEYS
    if whole < 2 * SPLIT_KEYS:
        return values.matmul(weights, transpose=False)
    # More threadgroups: the parts of the keys are products of their own, summed in float32.
    split = weights[..., :whole].reshape(*weights.shape[:3], -1, SPLIT_KEYS).swapaxes(2, 3)
    y = values.tokens(0, whole).split(SPLIT_KEYS).matmul(split, transpose=False)
    y = y.astype(mx.float32).sum(axis=2)
    if whole < keys:
        y = y + values.tokens(whole, keys).matmul(weights[..., whole:], transpose=False)
    return y.astype(weights.dtype)


def dequantized_bytes(tokens: int, head_dim: int, float_bytes: int) -> int:
    """Temporary bytes of one head's dequantized keys and values, without copies of packed ones.

    Keys and values are dequantized and then concatenated. On Metal all four arrays count: a command
    buffer holds its inputs until it is done (`gpu::eval` in mlx/backend/metal/eval.cpp, commit
    846d176). `mx.dequantize` also copies packed arrays that are parts of larger ones
    (`quantize_impl` in mlx/backend/metal/quantized.cpp, line 249).
    """
    return 4 * tokens * head_dim * float_bytes
