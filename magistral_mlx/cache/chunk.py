"""Attention of a prompt chunk over a quantized cache, in a few calls of the fused kernel.

Each query sees the older tokens quantized and the newer ones plain, and the boundary between them
moves on by a block every few queries. So the tokens of the chunk exist twice, plain and as they are
after quantization, and a boolean mask lets each query see every token once. The prefix is
dequantized once for all queries of the chunk.

The mask is that of a block of queries, and its kernel computes the scores that it hides: keys are
laid out so that a call's keys are a view with few hidden ones.

    keys   plain tokens, not quantized before the chunk | first tokens | quantized tokens
    call          [ ---------------------------------------------------------------- ]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import dequantized_bytes, queries_per_call
from magistral_mlx.cache.blocks import QUERY_BLOCK
from magistral_mlx.cache.scheme import PIECE, KVScheme
from magistral_mlx.cache.segments import Segment

# Masks up to these bytes may be in memory together; larger ones one at a time.
_MASKS = 32 << 20


class Piece(NamedTuple):
    """New tokens, by position, that attend to the same quantized tokens: the first `packed`."""

    start: int
    end: int
    packed: int


def split_chunk(scheme: KVScheme, length: int, count: int, packed: int) -> list[Piece]:
    """Split `count` tokens after `length` into pieces that end where a block leaves the window.

    All tokens of a piece attend to the same quantized tokens, `packed` at least, so results do not
    depend on how a sequence is cut into chunks.
    """
    pieces, start = [], length
    while start < length + count:
        aged = start - scheme.first - scheme.window
        most = scheme.block - aged % scheme.block if scheme.window else PIECE
        end = min(length + count, start + most)
        pieces.append(Piece(start, end, max(packed, scheme.packed(start))))
        start = end
    return pieces


class ChunkKeys(NamedTuple):
    """The tokens that a chunk's queries see.

    plain: the tokens that were not quantized before the chunk, those of the queries last.
    first: the first tokens of the sequence, never quantized. packed: the tokens after them, as far
    as any query sees them quantized; `before` of them were quantized before the chunk, so that the
    others are in `plain` as well.
    """

    plain: Segment
    first: Segment | None
    packed: Segment
    before: int

    @property
    def length(self) -> int:
        return sum(segment.length for segment in (self.plain, self.first, self.packed) if segment)


def attend_chunk(
    q: mx.array,
    keys: ChunkKeys,
    pieces: Sequence[Piece],
    *,
    scale: float,
    workspace: int,
) -> mx.array | None:
    """Attend causally with a chunk's queries.

    Args:
        q: (B, H, L, D).
        pieces: of the L queries.
        workspace: bytes that dequantized tokens and masks may take at once.

    Returns:
        (B, H, L, D), or None if the workspace is too small for a single head.
    """
    batch, heads, length, head_dim = q.shape
    kv_heads = keys.plain.kv_heads
    group = heads // kv_heads
    bytes_a_head = batch * dequantized_bytes(keys.length, head_dim, q.itemsize)
    bytes_a_head += keys.packed.packed_bytes // kv_heads
    masks = mask_bytes(length, keys.length)
    step = min(kv_heads, (workspace - masks) // bytes_a_head)
    if step < 1:
        return None
    one_at_a_time = masks < length * keys.length
    column = mx.arange(keys.length)
    parts = []
    for start in range(0, kv_heads, step):
        end = min(start + step, kv_heads)
        k, v = _plain_arrays(keys, start, end, q.dtype)
        some = q[:, start * group : end * group]
        calls = []
        for call in _calls(some, keys, pieces):
            mask = _visible(column[call.columns], *call.sight)
            calls.append(
                mx.fast.scaled_dot_product_attention(
                    some[:, :, call.queries],
                    k[:, :, call.columns],
                    v[:, :, call.columns],
                    scale=scale,
                    mask=mask,
                )
            )
            if one_at_a_time:
                mx.eval(calls[-1])  # or all masks might be in memory at once
        parts.append(calls[0] if len(calls) == 1 else mx.concatenate(calls, axis=2))
        if step < kv_heads:
            mx.eval(parts[-1])  # or the arrays of all steps might be
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)


def mask_bytes(queries: int, keys: int) -> int:
    """Bytes of the masks that are in memory at once."""
    every = queries * keys
    return every if every <= _MASKS else min(queries, QUERY_BLOCK) * keys


def _plain_arrays(
    keys: ChunkKeys, start: int, end: int, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Keys and values of some heads, (B, heads, S, D), in the order of this module's docstring."""
    segments = [
        segment.heads(start, end) for segment in (keys.plain, keys.first, keys.packed) if segment
    ]
    k = mx.concatenate([segment.plain_keys(dtype) for segment in segments], axis=2)
    v = mx.concatenate([segment.plain_values(dtype) for segment in segments], axis=2)
    return k, v


class _Call(NamedTuple):
    """Some queries and the columns of keys that they may see.

    sight: what each query sees: plain columns from the first array on to before the second, and
    others from the third, a number, on to before the fourth.
    """

    queries: slice
    columns: slice
    sight: tuple[mx.array, mx.array, mx.array, mx.array]


def _calls(q: mx.array, keys: ChunkKeys, pieces: Sequence[Piece]) -> Iterator[_Call]:
    first = keys.first.length if keys.first else 0
    plain, end = keys.plain.length, pieces[-1].end
    at = np.arange(pieces[0].start, end, dtype=np.int32)  # the queries' positions
    packed = np.concatenate(
        [np.full(piece.end - piece.start, piece.packed, np.int32) for piece in pieces]
    )
    low = packed - keys.before
    high = np.maximum(at + 1 - (end - plain), 0)
    others = plain + np.minimum(at + 1, first + packed)
    step = min(QUERY_BLOCK, queries_per_call(q, keys.length))
    for start in range(0, q.shape[2], step):
        some = slice(start, min(start + step, q.shape[2]))
        columns = slice(int(low[start]), int(others[some].max()))
        from_, until, others_until = (mx.array(x[some, None]) for x in (low, high, others))
        yield _Call(some, columns, (from_, until, mx.array(plain, mx.int32), others_until))


@partial(mx.compile, shapeless=True)
def _visible(
    column: mx.array, low: mx.array, high: mx.array, first: mx.array, end: mx.array
) -> mx.array:
    """(S,) columns, and (L, 1) per query -> (L, S) bool, in one kernel."""
    return ((column >= low) & (column < high)) | ((column >= first) & (column < end))
