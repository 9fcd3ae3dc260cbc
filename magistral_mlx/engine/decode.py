"""One token after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.engine.sampling import Sampler
from magistral_mlx.model.magistral import MagistralModel


def decode(
    model: MagistralModel,
    caches: Sequence[KVCache],
    logits: mx.array,
    sample: Sampler,
    limit: int,
) -> Iterator[int]:
    """Yield up to `limit` tokens, the first drawn from `logits`, (1, vocab_size).

    The graph of the next step is built while the device works on this one, and dispatched when
    this one is done: dispatched earlier, appending to the caches would copy them. When the
    consumer stops, the caches may hold one token more than it has seen the successor of.
    """
    position = caches[0].length
    token = sample(logits, position)  # (1,)
    mx.async_eval(token)
    for n in range(1, limit + 1):
        following = None
        if n < limit:
            h = model(model.embed(token[None]), caches)
            following = sample(model.logits(h)[:, 0], position + n)
        value = cast(int, token.item())
        if following is not None:
            mx.async_eval(following)
        yield value
        if following is not None:
            token = following
