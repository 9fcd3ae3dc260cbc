"""Attention of a few queries over a quantized cache, on Metal.

Products are made with the arrays as they are stored, in which the heads of a group are rows. The
scores of plain tokens are written in the place of those of spare rows of the packed keys, so that
all are in one array without a copy:

    scores    packed tokens | plain: first tokens and window

The rules of MLX's Metal backend that decide here are those of commit 846d176.
"""

from __future__ import annotations

from functools import lru_cache, partial, reduce
from operator import add

import numpy as np

from magistral_mlx.backend import mx
from magistral_mlx.cache.segments import Packed, Segment

FEW_QUERIES = 16  # the largest number of queries; more are faster with dequantized tokens
# A quantized matrix that is not transposed is multiplied on Metal by `qvm_split_k`, which splits
# the keys over threadgroups, for fewer than 4 rows, and else by `qmm_n`, in which some 32
# threadgroups walk through all keys (`QuantizedMatmul::eval_gpu`, mlx/backend/metal/quantized.cpp,
# lines 1804 to 1872). So up to as many rows are products of their own, as mlx-lm has it for the
# heads of a group: their threadgroups read the same values at about the same time. As each
# dequantizes them, more rows are faster in tiles, of 32 rows, of parts of the keys.
_ROWS_APART = 16
SPLIT_KEYS = 2048  # from which on keys are multiplied in parts
PARTS = 8  # at 8 heads 256 threadgroups or more, some six on each core of the largest chips
# A transposed one with keys of 64 or 128 channels has a kernel of its own, `qmv_quad`, for 2, 4 and
# 8 bits. For other bits a product of 2 to 12 rows may be given to `qmv_wide`, which divides the
# groups of a row among 8 lanes: of two groups of 64 channels, 6 lanes get none. A product of one
# row is given to `qmv`, which divides the channels among 32 (`dispatch_qmv`, lines 1739 to 1780).
_WIDE_ROWS = 12


def attend_packed(
    q: mx.array,
    packed: Segment,
    plain: Segment,
    visible: mx.array,
    *,
    workspace: int,
) -> mx.array | None:
    """Attend causally with a few queries to packed and plain tokens together.

    Args:
        q: (B, H, L, D), scaled.
        packed: tokens before the queries'. After its keys come S spare rows.
        plain: (B, H_kv, 1 + S, D): in the first row of keys the center, which packed keys lack.
        visible: (L, S) bool, the plain tokens that each query sees.
        workspace: bytes that scores may take at once.

    Returns:
        (B, H, L, D), or None if the workspace is too small for a single head.
    """
    batch, heads, length, head_dim = q.shape
    kv_heads = plain.kv_heads
    rows = heads // kv_heads * length
    total = packed.length + plain.length - 1
    # Scores, which become weights in place, and a copy of those of packed tokens.
    step = min(kv_heads, workspace // (batch * rows * (total + packed.length) * q.itemsize))
    if step == 0:
        return None
    step = -(-kv_heads // -(-kv_heads // step))  # calls of about as many heads each
    x = q.reshape(batch, kv_heads, rows, head_dim)
    parts = []
    for start in range(0, kv_heads, step):
        end = min(start + step, kv_heads)
        parts.append(
            _attend(x[:, start:end], packed.heads(start, end), plain.heads(start, end), visible)
        )
    y = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
    return y.reshape(q.shape)


@lru_cache(maxsize=64)  # one for each sequence of a batch
def visible_rows(rows: int, first: int, hidden: int, length: int) -> mx.array:
    """Visible plain tokens: (length, rows) bool, the same for all layers.

    Args:
        rows: plain tokens, those of the queries last.
        hidden: tokens after the first ones that are seen quantized.
    """
    row, query = np.arange(rows), np.arange(length)[:, None]
    return mx.array((row <= rows - length + query) & ((row < first) | (row >= first + hidden)))


def _attend(rows: mx.array, packed: Segment, plain: Segment, visible: mx.array) -> mx.array:
    """(B, H_kv, R, D) -> (B, H_kv, R, D)"""
    keys, values = packed.keys, packed.values
    assert isinstance(keys, Packed) and isinstance(values, Packed)
    assert isinstance(plain.keys, mx.array) and isinstance(plain.values, mx.array)
    new = rows @ plain.keys.swapaxes(-1, -2)  # (B, H_kv, R, 1 + S)
    new = new.reshape(*rows.shape[:2], -1, visible.shape[0], plain.length)  # R: by head and query
    new = _seen(new[..., 1:], new[..., :1], visible)
    scores = _scores(rows, keys)  # (B, H_kv, R, packed + S)
    # In place: nothing else refers to the array (`copy_gpu` in mlx/backend/gpu/copy.cpp).
    scores[..., packed.length :] = new.reshape(*scores.shape[:3], -1)
    weights = mx.softmax(scores, axis=-1, precise=True)
    y = _weighted(weights, values, packed.length)
    # Last, as this product adds what is there in the same kernel.
    return mx.addmm(y, weights[..., packed.length :], plain.values[:, :, 1:])


@partial(mx.compile, shapeless=True)
def _seen(scores: mx.array, center: mx.array, visible: mx.array) -> mx.array:
    """Scores of plain keys less the center's, -inf where a query does not see them: one kernel."""
    return mx.where(visible, scores - center, -mx.inf)


def _scores(rows: mx.array, keys: Packed) -> mx.array:
    """rows @ keys.T: (B, H_kv, R, D) -> (B, H_kv, R, S)."""
    has_kernel = keys.bits in (2, 4, 8)
    if not has_kernel and 1 < rows.shape[2] <= _WIDE_ROWS:
        return keys.unsqueezed().matmul(rows[:, :, :, None], transpose=True).squeeze(3)
    return keys.matmul(rows, transpose=True)


def _weighted(weights: mx.array, values: Packed, count: int) -> mx.array:
    """The first `count` weights @ values: (B, H_kv, R, T) and (B, H_kv, count, D) ->
    (B, H_kv, R, D)."""
    batch, heads, rows, total = weights.shape
    if rows <= _ROWS_APART:
        # A view: a matrix of one row is not copied if the stride of its rows is their length
        # (`ensure_row_contiguous_matrix`, quantized.cpp, line 65), whatever lies between them.
        strides = (heads * rows * total, rows * total, total, count, 1)
        apart = mx.as_strided(weights, (batch, heads, rows, 1, count), strides)
        return values.unsqueezed().matmul(apart, transpose=False).squeeze(3)
    if count < SPLIT_KEYS or count % PARTS:  # it is a multiple of a block where there is a window
        return values.matmul(weights[..., :count], transpose=False)
    # More threadgroups: the parts of the keys are products of their own. The weights are copied,
    # as the rows of a matrix must lie behind one another (`ensure_row_contiguous_matrix`).
    split = weights[..., :count].reshape(batch, heads, rows, PARTS, -1).swapaxes(2, 3)
    parts = values.split(count // PARTS).matmul(split, transpose=False)
    return _sum(*(parts[:, :, n] for n in range(PARTS)))


@partial(mx.compile, shapeless=True)
def _sum(*parts: mx.array) -> mx.array:
    """Add up in float32, in one kernel."""
    total = reduce(add, (part.astype(mx.float32) for part in parts))
    return total.astype(parts[0].dtype)
