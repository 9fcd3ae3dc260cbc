"""What is done with prompts before they queue for the model, in threads kept for it.

Prompts with images are opened and scaled one at a time: while it is scaled an image takes some
19 bytes a pixel, which is a gigabyte for the largest. Counting has a thread of its own, so that
no chat waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import cast

from magistral_mlx.api.inputs import PromptLike, to_messages
from magistral_mlx.api.options import Options
from magistral_mlx.chat.messages import Message, RawPrompt
from magistral_mlx.server.catalog import ServedModel
from magistral_mlx.server.image_limits import check_images, images_in
from magistral_mlx.server.settings import Settings
from magistral_mlx.server.web_images import WebImages


class Preparation:
    """The threads, and what runs in them. A thread that has begun goes on when nobody waits."""

    def __init__(self, settings: Settings) -> None:
        self._most = settings.limits.images
        self._web = WebImages(settings)
        self._images = ThreadPoolExecutor(1, "images")
        self._texts = ThreadPoolExecutor(2, "prompts")
        self._counts = ThreadPoolExecutor(1, "counts")

    async def fetched(self, prompt: PromptLike) -> PromptLike:
        """`prompt` with its images from the web; see `WebImages.fetched`."""
        return await self._web.fetched(prompt)

    async def check(self, prompt: PromptLike) -> int:
        """Find what is wrong without the model or an image's pixels -> bytes of its images.

        Raises:
            BadRequest: more images or pixels than allowed.
            PromptError: what is no message.
        """

        def check() -> int:
            size = check_images(prompt, self._most)
            if not isinstance(prompt, RawPrompt) and not images_in(prompt):
                to_messages(prompt, local_files=False)
            return size

        return await asyncio.get_running_loop().run_in_executor(self._texts, check)

    def pool(self, prompt: PromptLike) -> Executor:
        """Where `prompt` is to become one for the model."""
        return self._images if images_in(prompt) else self._texts

    def opened(self, prompt: PromptLike) -> PromptLike:
        """`prompt`, whose images are opened when it is read, once, and held by nothing else."""
        if isinstance(prompt, RawPrompt):
            return prompt

        def messages() -> Iterator[Message]:
            yield from to_messages(prompt, local_files=False)

        return cast(PromptLike, messages())

    async def count(self, served: ServedModel, prompt: PromptLike, options: Options) -> int:
        """Tokens of the prompt. Raises what `fetched`, `check` and opening images do."""
        prompt = await self.fetched(prompt)
        await self.check(prompt)

        def count() -> int:
            if isinstance(prompt, RawPrompt):
                return len(served.prompt(prompt, options))
            return len(served.prompt(to_messages(prompt, local_files=False), options))

        pool = self._images if images_in(prompt) else self._counts
        return await asyncio.get_running_loop().run_in_executor(pool, count)

    def close(self) -> None:
        """Begin nothing more."""
        for pool in (self._images, self._texts, self._counts):
            pool.shutdown(wait=False, cancel_futures=True)
