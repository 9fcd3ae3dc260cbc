"""The generation loop that every front stands on: pictures, prefill, decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.prefill import prefill, see_pictures
from magistral_mlx.engine.sampling import Sampling, make_sampler
from magistral_mlx.events import Prefill
from magistral_mlx.model.magistral import MagistralModel

_RESERVED = (
    1024  # tokens of cache made ready beyond the prompt, so that short answers never grow it
)


@dataclass(frozen=True)
class Request:
    """What one generation works on.

    tokens: (L,) prompt ids. pictures: (3, H, W) pixels each, in the order of their tokens.
    limit: tokens to produce at most; L + limit fits the context.
    """

    tokens: NDArray[np.int32]
    pictures: Sequence[NDArray[np.float32]]
    sampling: Sampling
    limit: int


def generate(model: MagistralModel, request: Request) -> Iterator[Prefill | int]:
    """Yield progress through the prompt, then token ids, until the limit.

    The caller stops at an end-of-sequence token by closing the iterator.
    """
    caches = model.make_caches()
    for cache in caches:
        cache.reserve(len(request.tokens) + min(request.limit, _RESERVED))
    features = see_pictures(model, request.pictures)
    logits = yield from prefill(model, caches, request.tokens, features)
    yield from decode(model, caches, logits, make_sampler(request.sampling), request.limit)
