"""The prompt into the caches: pictures through the tower, then tokens in chunks."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.events import Prefill
from magistral_mlx.model.magistral import MagistralModel


def see_pictures(model: MagistralModel, pictures: Sequence[NDArray[np.float32]]) -> mx.array | None:
    """Run each picture, (3, H, W), through the tower -> (tokens of all of them, D), or None.

    Pictures are evaluated one by one, so that memory holds the activations of a single one.
    """
    features = []
    for pixels in pictures:
        features.append(model.see(mx.array(pixels)))
        mx.eval(features[-1])
    return mx.concatenate(features) if features else None


def prefill(
    model: MagistralModel,
    caches: Sequence[KVCache],
    tokens: NDArray[np.int32],
    features: mx.array | None = None,
    chunk: int | None = None,
) -> Generator[Prefill, None, mx.array]:
    """Run a prompt through the decoder, yielding progress after each chunk.

    A chunk may begin or end inside a picture's tokens. The head runs for the last position only.

    Args:
        tokens: (L,) ids, L >= 1.
        features: the embeddings that stand at the picture tokens, in order.
        chunk: tokens at once; None is the backend's choice.

    Returns:
        (1, vocab_size) logits of the token after the prompt, still lazy.
    """
    chunk = chunk or backend().prefill_chunk
    is_picture = tokens == model.config.image_token_id
    first_feature = np.concatenate([[0], np.cumsum(is_picture)])
    total = len(tokens)
    yield Prefill(0, total)
    for start in range(0, total, chunk):
        end = min(start + chunk, total)
        h = model.embed(mx.array(tokens[None, start:end]))  # (1, L, D)
        places = np.flatnonzero(is_picture[start:end])
        if features is not None and len(places):
            h[0, mx.array(places)] = features[first_feature[start] : first_feature[end]]
        h = model(h, caches)
        if end < total:
            # Only the caches are wanted: the last block's output is never computed.
            mx.eval([array for cache in caches for array in cache.state])
            mx.clear_cache()
            yield Prefill(end, total)
    logits = model.logits(h[:, -1:])[:, 0]
    mx.eval(logits, [array for cache in caches for array in cache.state])
    mx.clear_cache()
    yield Prefill(total, total)
    return logits
