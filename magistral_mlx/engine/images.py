"""Images in a prompt: their keys, which make prompts comparable, and their features."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.config import ModelConfig
from magistral_mlx.model.adapters import Adapter
from magistral_mlx.model.magistral import MagistralModel

_DIGEST = 16  # bytes


@dataclass(frozen=True, slots=True)
class ImageKey:
    """An image by its content: equal keys stand for equal pixels, and so for equal features."""

    digest: bytes
    tokens: int

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.digest.hex()}-{self.tokens}"

    @classmethod
    def of(cls, pixels: NDArray[np.float32], tokens: int, adapter: int = 0) -> ImageKey:
        """The key of an image, (3, H, W), that has `tokens` image tokens in a prompt.

        Args:
            adapter: fingerprint of an adapter that changes its features; 0 for none.
        """
        content = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=_DIGEST)
        if adapter:
            content.update(adapter.to_bytes(8, "little"))
        content.update(np.ascontiguousarray(pixels).data)
        return cls(content.digest(), tokens)


def token_keys(
    tokens: NDArray[np.int32], images: Sequence[ImageKey], image_token: int, adapter: int = 0
) -> NDArray[np.int64]:
    """Replace image tokens in (L,) tokens by negative numbers that identify their image.

    Two prompts have the common prefix that their token keys have. The tokens may end before, or
    inside, an image.

    Args:
        adapter: fingerprint of the adapter, which is mixed into each key; 0 for none.
    """
    found = tokens.astype(np.int64)
    places = np.flatnonzero(tokens == image_token)
    start = 0
    for image in images:
        number = int.from_bytes(image.digest[:8], "little") >> 1
        found[places[start : start + image.tokens]] = -1 - number
        start += image.tokens
    return found ^ adapter


def common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return the number of leading elements that both have in common."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


class ImageFeatureCache(Protocol):
    """A cache of the features of images, by their keys."""

    def features(self, image: ImageKey) -> mx.array | None:
        """The features of an image, (n, D), if they are cached."""

    def get_ready(self) -> None:
        """Have the tower in memory, as an image is about to be encoded."""

    def keep_features(self, image: ImageKey, features: mx.array) -> None:
        """Cache the features of an image, (n, D), evaluated."""


def encode_images(model: MagistralModel, images: Sequence[NDArray[np.float32]]) -> mx.array | None:
    """Run each image, (3, H, W), through the tower -> (tokens of all of them, D), or None."""
    features = [*iter_image_features(model, images)]
    return mx.concatenate(features) if features else None


def iter_image_features(
    model: MagistralModel,
    images: Sequence[NDArray[np.float32]],
    keys: Sequence[ImageKey] = (),
    cache: ImageFeatureCache | None = None,
    adapter: Adapter | None = None,
) -> Iterator[mx.array]:
    """Run each image, (3, H, W), through the tower -> (tokens of it, D), evaluated.

    One by one, so that memory holds the activations of a single one. Those that `cache` has, by the
    `keys`, one an image, are not encoded again.
    """
    for n, pixels in enumerate(images):
        features = cache.features(keys[n]) if cache else None
        if features is None:
            if cache:
                cache.get_ready()
            with model.adapters.using([adapter]):
                features = model.encode_image(mx.array(pixels))
            mx.eval(features)
            if cache:
                cache.keep_features(keys[n], features)
        yield features


def iter_image_features_after(
    model: MagistralModel,
    tokens: NDArray[np.int32],
    images: Sequence[NDArray[np.float32]],
    cached: int,
    keys: Sequence[ImageKey] = (),
    cache: ImageFeatureCache | None = None,
    adapter: Adapter | None = None,
) -> Iterator[mx.array]:
    """The features of the image tokens from position `cached` on, (n, D) for each image.

    Images that lie before it, or that `cache` has, are not encoded again.
    """
    before = int(np.count_nonzero(tokens[:cached] == model.config.image_token_id))
    ends = np.cumsum([image_feature_count(model.config, pixels) for pixels in images], dtype=int)
    done = int(np.searchsorted(ends, before, side="right"))  # images that lie before it as a whole
    start = before - (int(ends[done - 1]) if done else 0)
    for features in iter_image_features(model, images[done:], keys[done:], cache, adapter):
        yield features[start:] if start else features
        start = 0


def image_feature_count(config: ModelConfig, pixels: NDArray[np.float32]) -> int:
    """The number of image tokens that stand for an image, (3, H, W); 0 without a tower."""
    if config.vision is None:
        return 0
    side = config.vision.patch_size * config.spatial_merge_size
    return (pixels.shape[1] // side) * (pixels.shape[2] // side)


def image_keys(
    config: ModelConfig, images: Sequence[NDArray[np.float32]], adapter: Adapter | None = None
) -> tuple[ImageKey, ...]:
    """The keys of images, (3, H, W) each; an adapter of the tower gives them other features."""
    salt = adapter.fingerprint if adapter and adapter.changes_vision else 0
    return tuple(
        ImageKey.of(pixels, image_feature_count(config, pixels), salt) for pixels in images
    )
