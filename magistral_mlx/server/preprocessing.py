"""Preprocessing of prompts before they queue for the model, in threads of its own: images are
fetched, bounded and scaled, tokens counted.

Prompts with images are opened and scaled one at a time: while it is scaled an image takes some
19 bytes a pixel, which is a gigabyte for the largest. Counting has a thread of its own, so that
no chat waits for it.
"""

from __future__ import annotations

import asyncio
import io
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.api.image_inputs import data_of_url
from magistral_mlx.api.inputs import PromptLike, to_messages
from magistral_mlx.api.options import Options
from magistral_mlx.api.prompt_length import texts_of
from magistral_mlx.chat.messages import Image, Message, RawPrompt
from magistral_mlx.errors import ImageError, InvalidOption
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.image_fetching import ImageFetcher
from magistral_mlx.server.model_registry import ServedModel
from magistral_mlx.server.settings import Settings

_COUNTED = 16  # contexts: counting a text that is longer would take minutes
_MOST_ANSWERS = 128  # to one prompt, as in OpenAI's API
# A file of a few kilobytes may unfold to half a gigabyte of pixels, so they are counted undecoded.
MAX_IMAGE_PIXELS = 50_000_000  # of one image: a photograph of a good camera
MAX_PROMPT_PIXELS = 100_000_000  # of all images of a prompt, which are opened together
_SCALED = 1540 * 1540  # pixels of one image after scaling at most
_BYTES = 12  # per scaled pixel: three channels in float32
_IMAGE_TYPES = ("image_url", "input_image", "image")


class Preprocessor:
    """The threads and their work. A thread that has begun goes on when nobody waits for it."""

    def __init__(self, settings: Settings) -> None:
        self._max_images = settings.limits.images
        self._max_tokens = settings.limits.tokens
        self._fetcher = ImageFetcher(settings)
        self._images = ThreadPoolExecutor(1, "images")
        self._texts = ThreadPoolExecutor(2, "prompts")
        self._counts = ThreadPoolExecutor(1, "counts")

    async def fetch_images(self, prompt: PromptLike) -> PromptLike:
        """Fetch the prompt's images from the web; see `ImageFetcher.fetch_all`."""
        return await self._fetcher.fetch_all(prompt)

    async def check(self, prompt: PromptLike) -> int:
        """Check the prompt without the model or an image's pixels -> bytes of its scaled images.

        Raises:
            BadRequest: more images or pixels than allowed.
            PromptError: an invalid message.
        """

        def check() -> int:
            size = check_images(prompt, self._max_images)
            if not isinstance(prompt, RawPrompt) and not images_in(prompt):
                to_messages(prompt, local_files=False)
            return size

        return await asyncio.get_running_loop().run_in_executor(self._texts, check)

    def executor(self, prompt: PromptLike) -> Executor:
        """Executor in which to tokenize `prompt` and scale its images."""
        return self._images if images_in(prompt) else self._texts

    def open_images(self, prompt: PromptLike) -> PromptLike:
        """Return `prompt` as messages whose images are opened when it is read, once."""
        if isinstance(prompt, RawPrompt):
            return prompt

        def messages() -> Iterator[Message]:
            yield from to_messages(prompt, local_files=False)

        return cast(PromptLike, messages())

    def limit(self, options: Options) -> Options:
        """Return `options` within the limits of this server.

        Raises:
            InvalidOption: too many answers to one prompt.
        """
        if options.n > _MOST_ANSWERS:
            raise InvalidOption(f"n is {options.n}; it must be at most {_MOST_ANSWERS}.")
        most = self._max_tokens
        if most is None or (options.max_tokens is not None and options.max_tokens <= most):
            return options
        return replace(options, max_tokens=most)

    async def tokenize(
        self, served: ServedModel, prompt: PromptLike, options: Options
    ) -> NDArray[np.int32]:
        """Encode a prompt -> (L,) ids. Raises what fetching, checking and opening images do."""
        prompt = await self.fetch_images(prompt)
        await self.check(prompt)

        def encode() -> NDArray[np.int32]:
            if isinstance(prompt, RawPrompt):
                served.check_length([str(prompt.content)], _COUNTED)
                return served.prompt(prompt, options).tokens
            messages = to_messages(prompt, local_files=False)
            served.check_length(texts_of(messages), _COUNTED)
            return served.prompt(messages, options).tokens

        pool = self._images if images_in(prompt) else self._counts
        return await asyncio.get_running_loop().run_in_executor(pool, encode)

    def close(self) -> None:
        """Start no more work."""
        for pool in (self._images, self._texts, self._counts):
            pool.shutdown(wait=False, cancel_futures=True)


def images_in(prompt: PromptLike) -> int:
    """Count the images of a prompt."""
    return sum(1 for _ in _images(prompt))


def check_images(prompt: PromptLike, most: int) -> int:
    """Check number and size of the images -> bytes that they take once they are scaled.

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
        if has > MAX_IMAGE_PIXELS:
            raise _too_many(f"image {n} has {has / 1e6:,.0f} megapixels", MAX_IMAGE_PIXELS)
    if sum(pixels) > MAX_PROMPT_PIXELS:
        raise _too_many(
            f"the images have {sum(pixels) / 1e6:,.0f} megapixels together", MAX_PROMPT_PIXELS
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
                isinstance(part, Mapping) and part.get("type") in _IMAGE_TYPES
            ):
                yield part


def _pixels(part: Any) -> int:
    """Pixels of an image; 0 for an invalid one, whose error comes when it is opened."""
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
