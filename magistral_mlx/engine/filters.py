"""Sampling filters: top-k, top-p (nucleus) and min-p, with one sort of the logits at most.

The order is that of transformers and vLLM: temperature, then top_k, then top_p over the remaining
tokens (renormalised), then min_p. mlx-lm filters before the temperature, in the order top_p, min_p,
top_k: at temperature 1 each filter keeps the same tokens, at others a nucleus differs in size.
"""

from __future__ import annotations

import math

from magistral_mlx.backend import mx


def keep_likely(
    logits: mx.array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> mx.array:
    """Set the logits of tokens that a filter removes to -inf. Ties are kept together.

    Args:
        logits: (1, vocab_size) float32, scaled by temperature.
        top_k: number of most likely tokens to keep; 0 keeps all.
        top_p: keep the smallest set of tokens whose probabilities sum to at least top_p
            (arXiv 1904.09751); 1 keeps all.
        min_p: keep tokens at least this probable relative to the most likely one
            (arXiv 2407.01082).
    """
    least = _least_likely(logits, top_k, top_p)
    if min_p > 0:
        relative = mx.max(logits, axis=-1, keepdims=True) + math.log(min_p)
        least = relative if least is None else mx.maximum(least, relative)
    return logits if least is None else mx.where(logits >= least, logits, -mx.inf)


def _least_likely(logits: mx.array, top_k: int, top_p: float) -> mx.array | None:
    """Return the lowest logit that top_k and top_p keep, (1, 1); None if both are off.

    A threshold needs no scatter. `mx.topk` partitions on the CPU. On Metal MLX sorts all logits for
    that (`Partition::eval_gpu`, mlx/backend/metal/sort.cpp, line 355 of commit 846d176), so there
    top_k takes as long as top_p.
    """
    limited = 0 < top_k < logits.shape[-1]
    if not limited and top_p >= 1:
        return None
    candidates = mx.topk(logits, top_k, axis=-1) if limited else logits
    if top_p >= 1:
        return mx.min(candidates, axis=-1, keepdims=True)
    ranked = mx.sort(candidates, axis=-1)
    # Sum from the least likely token on: small numbers first keeps rounding errors small.
    up_to = mx.cumsum(mx.softmax(ranked, axis=-1), axis=-1)
    dropped = mx.sum(up_to <= 1 - top_p, axis=-1, keepdims=True)
    dropped = mx.minimum(dropped, ranked.shape[-1] - 1)
    return mx.take_along_axis(ranked, dropped, axis=-1)
