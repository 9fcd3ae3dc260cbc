"""Which tokens may be drawn: top-k, nucleus and min-p, from one sort of the logits.

The order is that of transformers and vLLM: temperature first, then top_k, then top_p over what
top_k left (renormalised), then min_p. mlx-lm filters before the temperature instead, and takes
top_p, min_p and top_k in that order: at temperature 1 each filter keeps the same tokens here and
there, at others a nucleus is larger or smaller.
"""

from __future__ import annotations

import math

from magistral_mlx.backend import mx


def keep_likely(
    logits: mx.array, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> mx.array:
    """Keep the tokens that the filters allow; the others become -inf. Ties are kept together.

    Args:
        logits: (1, vocab_size) float32, scaled by temperature.
        top_k: the number of likeliest tokens to keep; 0 keeps all.
        top_p: the fewest tokens whose probabilities reach it (arXiv 1904.09751); 1 keeps all.
        min_p: tokens at least this likely relative to the likeliest (arXiv 2407.01082).
    """
    least = _least_likely(logits, top_k, top_p)
    if min_p > 0:
        relative = mx.max(logits, axis=-1, keepdims=True) + math.log(min_p)
        least = relative if least is None else mx.maximum(least, relative)
    return logits if least is None else mx.where(logits >= least, logits, -mx.inf)


def _least_likely(logits: mx.array, top_k: int, top_p: float) -> mx.array | None:
    """The lowest logit that top_k and top_p keep, (1, 1); None if they are off.

    The k largest of them come without sorting the rest, and a threshold needs no scatter.
    """
    limited = 0 < top_k < logits.shape[-1]
    if not limited and top_p >= 1:
        return None
    candidates = mx.topk(logits, top_k, axis=-1) if limited else logits
    if top_p >= 1:
        return mx.min(candidates, axis=-1, keepdims=True)
    ranked = mx.sort(candidates, axis=-1)
    # Summed from the least likely on: small numbers first, so that little is lost to rounding.
    up_to = mx.cumsum(mx.softmax(ranked, axis=-1), axis=-1)
    dropped = mx.sum(up_to <= 1 - top_p, axis=-1, keepdims=True)
    dropped = mx.minimum(dropped, ranked.shape[-1] - 1)
    return mx.take_along_axis(ranked, dropped, axis=-1)
