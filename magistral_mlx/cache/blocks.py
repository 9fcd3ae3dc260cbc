"""Attention in blocks of keys with an online softmax (arXiv 1805.02867), packed ones dequantized
block by block, so that its temporary arrays stay within a workspace of any size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from magistral_mlx.backend import mx
from magistral_mlx.cache.segments import Segment

SCORE_COPIES = 2  # arrays of a block's size: scores and their exponentials
DEQUANTIZED_COPIES = 4  # arrays of a block's size: keys and values, each with an intermediate
QUERY_BLOCK = 512  # queries of a block
_FEWEST_KEYS = 16  # keys of a block, at least


def attend_blocks(
    q: mx.array, segments: Sequence[Segment], *, scale: float, causal: bool, workspace: int
) -> mx.array:
    """Attend with blocks of queries to blocks of keys, with an online softmax."""
    length = q.shape[2]
    step = min(length, QUERY_BLOCK)
    parts = []
    for start in range(0, length, step):
        end = min(start + step, length)
        later = length - end if causal else 0  # tokens after the last query of the block
        part = _attend_query_block(
            q[:, :, start:end], segments, later, scale=scale, causal=causal, workspace=workspace
        )
        parts.append(part)
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _attend_query_block(
    q: mx.array,
    segments: Sequence[Segment],
    later: int,
    *,
    scale: float,
    causal: bool,
    workspace: int,
) -> mx.array:
    batch, heads, length, head_dim = q.shape
    kv_heads = segments[0].kv_heads
    rows = q if scale == 1 else q * scale
    rows = rows.reshape(batch, kv_heads, heads // kv_heads * length, head_dim)
    bytes_a_key = rows.size // head_dim * score_bytes(q.itemsize)
    copies = max(segment.dequantized_copies for segment in segments)
    bytes_a_key += batch * kv_heads * head_dim * 4 * copies
    block = max(_FEWEST_KEYS, workspace // bytes_a_key)
    peak: mx.array | None = None  # the largest score so far: (B, H_kv, rows, 1)
    for k, v, ahead in _key_blocks(segments, block, later, q.dtype):
        scores = (rows @ k.swapaxes(-1, -2)).astype(mx.float32)
        if causal and ahead < length:
            scores = hide_later(scores, length, k.shape[2], ahead)
        top = scores.max(axis=-1, keepdims=True)
        if peak is None:
            weights = mx.exp(scores - top)
            total = weights.sum(axis=-1, keepdims=True)
            y = weights.astype(v.dtype) @ v
        else:
            top = mx.maximum(peak, top)
            weights = mx.exp(scores - top)
            fade = mx.exp(peak - top)
            total = total * fade + weights.sum(axis=-1, keepdims=True)
            y = y * fade + weights.astype(v.dtype) @ v
        peak = top
        # Evaluate each block before the next is built, or all blocks would be in memory at once.
        mx.eval(y, total, peak)
    return (y / total).astype(q.dtype).reshape(batch, heads, length, head_dim)


def _key_blocks(
    segments: Sequence[Segment], block: int, later: int, dtype: mx.Dtype
) -> Iterator[tuple[mx.array, mx.array, int]]:
    """Yield plain keys and values, (B, H_kv, T, D), with the number of visible tokens after them.

    The last `later` tokens of all segments are left out.
    """
    ahead = sum(segment.length for segment in segments) - later
    for segment in segments:
        for start in range(0, segment.length, block):
            end = min(start + block, segment.length, start + ahead)
            if end <= start:
                return
            ahead -= end - start
            block_of = segment.tokens(start, end)
            yield block_of.plain_keys(dtype), block_of.plain_values(dtype), ahead


def hide_later(scores: mx.array, length: int, keys: int, ahead: int) -> mx.array:
    """Mask keys that come after their query with -inf.

    Args:
        scores: (B, H_kv, group * length, keys), the last key `ahead` tokens before the last query.
    """
    query = mx.arange(length)[:, None] - (length - 1)  # relative to the last query
    key = mx.arange(keys)[None] - (keys - 1) - ahead
    seen = key <= query  # (length, keys)
    by_head = scores.reshape(*scores.shape[:2], -1, length, keys)
    return mx.where(seen, by_head, -mx.inf).reshape(scores.shape)


def score_bytes(float_bytes: int) -> int:
    """Temporary bytes per query and key: scores in float32, and in the dtype of the product."""
    return SCORE_COPIES * (4 if float_bytes == 4 else 4 + float_bytes)
