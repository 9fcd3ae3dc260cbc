"""Attention of a few queries over a quantized cache, where the backend has fused kernels.

Products are made with the arrays as they are stored, in which the heads of a group are rows. The
scores of plain tokens are written in the place of those of spare rows of the packed keys, so that
all are in one array without a copy:

    scores    packed tokens | plain: first tokens and window

The rules of MLX's Metal backend that decide here are those of commit 846d176.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.segments import Packed, Segment

FEW_QUERIES = 16  # the largest number of queries; more are faster with dequantized tokens
# A quantized matrix that is not transposed is multiplied on Metal by `qvm_split_k`, which splits
# the keys over threadgroups, for fewer than 4 rows, and else by `qmm_n`, in which some 32
# threadgroups walk through all keys (`QuantizedMatmul::eval_gpu`, mlx/backend/metal/quantized.cpp,
# lines 1804 to 1872). So up to as many rows are products of their own, as mlx-lm has it for the
# heads of a group: their threadgroups read the same values at about the same time. As each
# dequantizes them, more rows are faster in tiles, of 32 rows, of parts of the keys.
_ROWS_APART = 16
SPLIT_KEYS = 1024  # keys of a part, at least
_MOST_PARTS = 16  # each has a result of its own, to be written and added up
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
    step = min(kv_heads, workspace // (batch * rows * total * score_bytes(rows, q.itemsize)))
    if step == 0:
        return None
    x = q.reshape(batch, kv_heads, rows, head_dim)
    parts = []
    for start in range(0, kv_heads, step):
        end = min(start + step, kv_heads)
        parts.append(
            _attend(x[:, start:end], packed.heads(start, end), plain.heads(start, end), visible)
        )
    y = parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=1)
    return y.reshape(q.shape)


def score_bytes(rows: int, float_bytes: int) -> int:
    """Temporary bytes of a row and key: a score and a weight, and a copy of that for its part."""
    return float_bytes * (2 if rows <= _ROWS_APART else 3)


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
    if backend().name == "metal" and not has_kernel and 1 < rows.shape[2] <= _WIDE_ROWS:
        return keys.unsqueezed().matmul(rows[:, :, :, None], transpose=True).squeeze(3)
    return keys.matmul(rows, transpose=True)


def _weighted(weights: mx.array, values: Packed, count: int) -> mx.array:
    """The first `count` weights @ values: (B, H_kv, R, T) and (B, H_kv, count, D) ->
    (B, H_kv, R, D)."""
    batch, heads, rows, total = weights.shape
    if backend().name != "metal":
        return values.matmul(weights[..., :count], transpose=False)
    if rows <= _ROWS_APART:
        # A view: a matrix of one row is not copied if the stride of its rows is their length
        # (`ensure_row_contiguous_matrix`, quantized.cpp, line 65), whatever lies between them.
        strides = (heads * rows * total, rows * total, total, count, 1)
        apart = mx.as_strided(weights, (batch, heads, rows, 1, count), strides)
        return values.unsqueezed().matmul(apart, transpose=False).squeeze(3)
    size = SPLIT_KEYS * -(-count // (SPLIT_KEYS * _MOST_PARTS))
    whole = count - count % size
    if whole < 2 * size:
        return values.matmul(weights[..., :count], transpose=False)
    # More threadgroups: the parts of the keys are products of their own.
    split = weights[..., :whole].reshape(batch, heads, rows, -1, size).swapaxes(2, 3)
    parts = values.tokens(0, whole).split(size).matmul(split, transpose=False)
    y = parts.astype(mx.float32).sum(axis=2)
    if whole == count:
        return y.astype(weights.dtype)
    rest = values.tokens(whole, count).matmul(weights[..., whole:count], transpose=False)
    return _sum(y, rest)


@partial(mx.compile, shapeless=True)
def _sum(y: mx.array, part: mx.array) -> mx.array:
    """Float32 and a part in the dtype of the result, added in one kernel."""
    return (y + part).astype(part.dtype)
