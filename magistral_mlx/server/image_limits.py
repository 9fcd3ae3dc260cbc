"""How many images a prompt holds and how large they are, before any of them is decoded.

A file of a few kilobytes may unfold to half a gigabyte of pixels.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from magistral_mlx.api.image_inputs import data_of_url
from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.chat.messages import Image
from magistral_mlx.errors import ImageError
from magistral_mlx.server.refusals import BadRequest

_MOST_PIXELS = 50_000_000  # of one image: a photograph of a good camera
_MOST_IN_ALL = 100_000_000  # of all images of a prompt, which are opened together
_SCALED = 1540 * 1540  # pixels that the model sees of one at most
_BYTES = 12  # of a pixel then: three channels in float32
_KINDS = ("image_url", "input_image", "image")


def images_in(prompt: PromptLike) -> int:
    """The number of images in a prompt."""
    return sum(1 for _ in _images(prompt))


def check_images(prompt: PromptLike, most: int) -> int:
    """Bytes that the images take once they are scaled for the model.

    Raises:
        BadRequest: more than `most` images, or too many pixels in one or in all.
    """
    count = images_in(prompt)
    if count > most:
        raise BadRequest(
            f"the request holds {count} images, and this server takes {most} at most. Send "
            "fewer, or start it with a higher --max-images."
        )
    pixels = [_pixels(part) for part in _images(prompt)]
    for n, has in enumerate(pixels, 1):
        if has > _MOST_PIXELS:
            raise _too_many(f"image {n} has {has / 1e6:,.0f} megapixels", _MOST_PIXELS)
    if sum(pixels) > _MOST_IN_ALL:
        raise _too_many(
            f"the images have {sum(pixels) / 1e6:,.0f} megapixels together", _MOST_IN_ALL
        )
    return sum(min(has, _SCALED) * _BYTES for has in pixels)


def _too_many(what: str, most: int) -> BadRequest:
    return BadRequest(
        f"{what}, and this server takes {most / 1e6:,.0f} at most. Make it smaller; the model "
        "loses nothing."
    )


def _images(prompt: PromptLike) -> Iterator[Any]:
    entries: Any = [prompt] if isinstance(prompt, Mapping) else prompt
    for entry in entries if isinstance(entries, list | tuple) else ():
        content = (
            entry.get("content") if isinstance(entry, Mapping) else getattr(entry, "content", None)
        )
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Image) or (
                isinstance(part, Mapping) and part.get("type") in _KINDS
            ):
                yield part


def _pixels(part: Any) -> int:
    """0 for what is no image: opening it tells what is wrong."""
    if isinstance(part, Image):
        width, height = part.image.size
        return width * height
    source = part.get("image", part.get("image_url"))
    if isinstance(source, Mapping):
        source = source.get("url")
    if isinstance(source, str) and source[:5].lower() == "data:":
        try:
            source = data_of_url(source)
        except ImageError:
            return 0
    return _pixels_of_file(source) if isinstance(source, bytes) else 0


def _pixels_of_file(data: bytes) -> int:
    import PIL.Image

    from magistral_mlx.chat.image_formats import allowed_formats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with PIL.Image.open(io.BytesIO(data), formats=allowed_formats(data[:64])) as image:
                return image.width * image.height
        except Exception:  # decoders meet damaged data with whatever comes up
            return 0
