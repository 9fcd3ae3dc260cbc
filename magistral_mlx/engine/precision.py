"""Whether a loaded model's values stay within float16, found by one pass over a prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.engine.images import encode_images
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.model.rope import query_growth

FLOAT16_LIMIT = 30_000.0  # half of what float16 holds


def largest_hidden_state(
    model: MagistralModel, tokens: NDArray[np.int32], images: Sequence[NDArray[np.float32]]
) -> float:
    """Run a prompt and return the largest magnitude between two layers.

    Args:
        tokens: (L,) ids. images: (3, H, W) pixels each, for which the vision tower is loaded.

    Returns:
        infinity if a value of a layer, of an image's features or of the logits is not finite.
    """
    h = model.embed(mx.array(tokens[None]))  # (1, L, D)
    largest = 0.0
    features = encode_images(model, images)
    if features is not None:
        places = np.flatnonzero(tokens == model.config.image_token_id)
        h[0, mx.array(places)] = features
        largest = _magnitude(features)
    decoder = model.language_model.model
    growth = query_growth(decoder.query_scaling, 0, len(tokens))
    growth = growth.astype(h.dtype) if isinstance(growth, mx.array) else growth
    for layer, cache in zip(decoder.layers, model.make_caches(), strict=True):
        h = layer(h, cache, growth)
        largest = max(largest, _magnitude(h))
        if math.isinf(largest):
            return largest
    logits = model.logits(decoder.norm(h[:, -1:]))
    return math.inf if math.isinf(_magnitude(logits)) else largest


def _magnitude(x: mx.array) -> float:
    """Largest magnitude, or infinity for NaN."""
    largest = float(mx.abs(x.astype(mx.float32)).max())
    return largest if math.isfinite(largest) and bool(mx.isfinite(x).all()) else math.inf
