"""The prompt into the caches: images through the tower, then tokens in chunks."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.config import ModelConfig
from magistral_mlx.engine.images import ImageKey
from magistral_mlx.events import Prefill
from magistral_mlx.model.magistral import MagistralModel

_QUESTION = 256  # tokens that may well be others the next time, at the end of a prompt


@dataclass
class ComputedPrefix:
    """Caches that hold the beginning of a prompt, for the next generation to go on from.

    length: leading tokens of that prompt that they hold; what they hold beyond is trimmed off.
    logits: (1, vocab_size) of the token after them, where they are the whole prompt.
    """

    caches: Sequence[KVCache]
    length: int
    logits: mx.array | None = None


class ImageFeatureCache(Protocol):
    """The features of images that were seen before."""

    def features(self, image: ImageKey) -> mx.array | None:
        """The features of an image, (n, D), if they are held."""

    def get_ready(self) -> None:
        """Have the tower in memory, as an image is about to be looked at."""

    def keep_features(self, image: ImageKey, features: mx.array) -> None:
        """Hold the features of an image, (n, D), evaluated."""


def encode_images(model: MagistralModel, images: Sequence[NDArray[np.float32]]) -> mx.array | None:
    """Run each image, (3, H, W), through the tower -> (tokens of all of them, D), or None."""
    features = [*iter_image_features(model, images)]
    return mx.concatenate(features) if features else None


def iter_image_features(
    model: MagistralModel,
    images: Sequence[NDArray[np.float32]],
    keys: Sequence[ImageKey] = (),
    seen: ImageFeatureCache | None = None,
) -> Iterator[mx.array]:
    """Run each image, (3, H, W), through the tower -> (tokens of it, D), evaluated.

    One by one, so that memory holds the activations of a single one. Those that were `seen` by one
    of the `keys`, one an image, are not looked at again.
    """
    for n, pixels in enumerate(images):
        known = seen.features(keys[n]) if seen else None
        if known is None:
            if seen:
                seen.get_ready()
            known = model.encode_image(mx.array(pixels))
            mx.eval(known)
            if seen:
                seen.keep_features(keys[n], known)
        yield known


def iter_image_features_after(
    model: MagistralModel,
    tokens: NDArray[np.int32],
    images: Sequence[NDArray[np.float32]],
    held: int,
    keys: Sequence[ImageKey] = (),
    seen: ImageFeatureCache | None = None,
) -> Iterator[mx.array]:
    """The features of the image tokens from position `held` on, (n, D) for each image.

    Images that lie before it, or were `seen`, are not looked at again.
    """
    before = int(np.count_nonzero(tokens[:held] == model.config.image_token_id))
    ends = np.cumsum([image_feature_count(model.config, pixels) for pixels in images], dtype=int)
    done = int(np.searchsorted(ends, before, side="right"))  # images that are held as a whole
    start = before - (int(ends[done - 1]) if done else 0)
    for features in iter_image_features(model, images[done:], keys[done:], seen):
        yield features[start:] if start else features
        start = 0


def image_feature_count(config: ModelConfig, pixels: NDArray[np.float32]) -> int:
    """The number of image tokens that stand for an image, (3, H, W); 0 without a tower."""
    if config.vision is None:
        return 0
    side = config.vision.patch_size * config.spatial_merge_size
    return (pixels.shape[1] // side) * (pixels.shape[2] // side)


def image_keys(config: ModelConfig, images: Sequence[NDArray[np.float32]]) -> tuple[ImageKey, ...]:
    """What tells the images, (3, H, W) each, from others."""
    return tuple(ImageKey.of(pixels, image_feature_count(config, pixels)) for pixels in images)


def prefill(
    model: MagistralModel,
    caches: Sequence[KVCache],
    tokens: NDArray[np.int32],
    features: mx.array | None = None,
    chunk: int | None = None,
    snapshots: int = 0,
) -> Generator[Prefill, int | None, mx.array]:
    """Run what the caches do not hold of a prompt through the decoder, yielding progress.

    What is sent is the number of tokens that the next chunk has at most. A chunk may begin or end
    inside an image's tokens. The head runs for the last position only.

    Args:
        tokens: (L,) ids of the whole prompt, of which the caches hold the first ones, not all.
        features: the embeddings that stand at the image tokens still to come, in order.
        chunk: tokens at once; None is the backend's choice.
        snapshots: places that quantized caches can be trimmed back to, for prompts that share a
            part of this one: how many, 0 for none.

    Returns:
        (1, vocab_size) logits of the token after the prompt.
    """
    chunk = chunk or backend().prefill_chunk
    held = caches[0].length
    is_image = tokens == model.config.image_token_id
    is_image[:held] = False
    first_feature = np.concatenate([[0], np.cumsum(is_image)])
    total = len(tokens)
    most = yield Prefill(held, total)
    end = held
    while end < total:
        start, end = end, _end(end, total, min(chunk, most or chunk), snapshots)
        h = model.embed(mx.array(tokens[None, start:end]))  # (1, L, D)
        places = np.flatnonzero(is_image[start:end])
        if features is not None and len(places):
            h[0, mx.array(places)] = features[first_feature[start] : first_feature[end]]
        if end < total:
            model.prefill(h, caches)
        else:
            h = model(h, caches)
        if snapshots:
            for cache in caches:
                cache.snapshot(snapshots)
        if end < total:
            mx.eval([array for cache in caches for array in cache.state])
            mx.clear_cache()
            most = yield Prefill(end, total)
    logits = model.logits(h[:, -1:])[:, 0]
    mx.eval(logits, [array for cache in caches for array in cache.state])
    mx.clear_cache()
    yield Prefill(total, total)
    return logits


def _end(start: int, total: int, chunk: int, snapshots: int) -> int:
    """Where a chunk ends. One ends, and is marked, a question's length before the prompt does."""
    end = min(start + chunk, total)
    question = total - _QUESTION
    return question if snapshots and start < question < end else end
