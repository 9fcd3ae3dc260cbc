"""Which image stands where: what makes the beginnings of two prompts the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    def of(cls, pixels: NDArray[np.float32], tokens: int) -> ImageKey:
        """The key of an image, (3, H, W), that has `tokens` image tokens in a prompt."""
        content = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=_DIGEST)
        content.update(np.ascontiguousarray(pixels).data)
        return cls(content.digest(), tokens)


def token_keys(
    tokens: NDArray[np.int32], images: Sequence[ImageKey], image_token: int
) -> NDArray[np.int64]:
    """(L,) tokens, the image tokens replaced by negative numbers that tell their image.

    Two prompts begin alike as far as their keyed tokens do. The tokens may end before, or inside,
    an image.
    """
    found = tokens.astype(np.int64)
    places = np.flatnonzero(tokens == image_token)
    start = 0
    for image in images:
        number = int.from_bytes(image.digest[:8], "little") >> 1
        found[places[start : start + image.tokens]] = -1 - number
        start += image.tokens
    return found


def common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many leading elements are the same in both."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length
