"""A limit on the tokens of an image, kept by scaling down as mistral-common does.

mistral-common scales an image down to a largest side of 1540 pixels. For an image with more tokens
than the limit, the largest side with which it fits is used instead.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import ImageError, InvalidOption

if TYPE_CHECKING:
    from mistral_common.protocol.instruct.chunk import ImageChunk, ImageURLChunk
    from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, ImageEncoding
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

FEWEST = 2  # one merged patch and the end of the image


def image_prompt_tokens(width: int, height: int, config: ImageConfig) -> int:
    """Return the tokens of an image of that size in pixels, row ends included."""
    ratio = max(width, height) / config.max_image_size
    if ratio > 1:
        width, height = max(round(width / ratio), 1), max(round(height / ratio), 1)
    cell = config.image_patch_size * config.spatial_merge_size
    columns, rows = (width - 1) // cell + 1, (height - 1) // cell + 1
    return (columns + 1) * rows


def largest_side(width: int, height: int, config: ImageConfig, cap: int) -> int:
    """Return the largest `max_image_size` with which the image has at most `cap` tokens.

    Tokens grow with pixels, so it is found by bisection.
    """
    low, high = 1, config.max_image_size
    while low < high:
        middle = (low + high + 1) // 2
        if image_prompt_tokens(width, height, replace(config, max_image_size=middle)) <= cap:
            low = middle
        else:
            high = middle - 1
    return low


def with_image_token_limit(mistral: MistralTokenizer[Any, Any, Any, Any, Any], cap: int) -> Any:
    """Return a copy of the tokenizer that encodes no image as more than `cap` tokens.

    It shares the vocabulary with the original.

    Raises:
        InvalidOption: the limit is below that of the smallest image.
    """
    if cap < FEWEST:
        raise InvalidOption(f"image_tokens is {cap}; it must be {FEWEST} or more.")
    tokenizer = copy.copy(mistral)
    instruct = copy.copy(mistral.instruct_tokenizer)
    encoder = instruct.image_encoder
    if encoder is None:
        return mistral
    instruct.image_encoder = _capped_encoder(encoder, cap)
    tokenizer.instruct_tokenizer = instruct
    return tokenizer


def _capped_encoder(encoder: ImageEncoder, cap: int) -> ImageEncoder:
    from mistral_common.tokens.tokenizers.image import ImageEncoder, image_from_chunk

    config, ids = encoder.image_config, encoder.special_ids

    class Capped(ImageEncoder):
        def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
            width, height = image_from_chunk(content).size
            side = largest_side(width, height, config, cap)
            encoding = ImageEncoder(replace(config, max_image_size=side), ids)(content)
            if len(encoding.tokens) > cap:
                raise ImageError(
                    f"an image of {width}×{height} pixels cannot be shown in {cap} tokens. "
                    "Allow more with image_tokens."
                )
            return encoding

    return Capped(config, ids)
