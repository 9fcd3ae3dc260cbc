"""Images that messages name by a web address, fetched where the server is allowed to."""

from __future__ import annotations

import asyncio
from typing import Any

from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.errors import ImageError
from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.remote_images import fetch_image
from magistral_mlx.server.settings import MIB, Settings

_AT_ONCE = 4  # requests whose images are fetched
_SECONDS = 60.0  # for all images of one


class WebImages:
    """Fetches them, for a few requests at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def fetched(self, prompt: PromptLike) -> PromptLike:
        """`prompt` with the bytes of images in place of their web addresses.

        Cancelling the task hangs up on the web.

        Raises:
            ImageError: fetching is off, failed, or took too long.
            BadRequest: more of them, or of their bytes, than the server takes.
        """
        places = _places(prompt)
        if not places:
            return prompt
        limits = self._settings.limits
        if len(places) > limits.images:
            raise BadRequest(
                f"the request names {len(places)} images on the web, and this server takes "
                f"{limits.images} at most. Send fewer."
            )
        try:
            async with self._turns, asyncio.timeout(_SECONDS):
                return await self._fetch(prompt, places)
        except TimeoutError:
            raise ImageError(
                f"the images on the web did not arrive within {_SECONDS:g} seconds together. "
                "Send their bytes as data URLs."
            ) from None

    async def _fetch(self, prompt: Any, places: list[tuple[int, int, str]]) -> PromptLike:
        most, taken = self._settings.limits.body_bytes, 0
        changed = list(prompt)
        for n, m, url in places:
            where = f"messages[{n}].content[{m}].image_url"
            image = await fetch_image(url, self._settings, where=where)
            taken += len(image)
            if taken > most:
                raise BadRequest(
                    f"the images on the web have more than {most / MIB:.4g} MiB together. Send "
                    "fewer or smaller ones, or start the server with a higher --max-body."
                )
            content = list(changed[n]["content"])
            content[m] = {"type": "image", "image": image}
            changed[n] = changed[n] | {"content": content}
        return changed


def _places(prompt: PromptLike) -> list[tuple[int, int, str]]:
    """Message, part and address of each."""
    found = []
    for n, message in enumerate(prompt if isinstance(prompt, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for m, part in enumerate(content if isinstance(content, list) else ()):
            url = _url(part)
            if url is not None:
                found.append((n, m, url))
    return found


def _url(part: Any) -> str | None:
    source = part.get("image_url") if isinstance(part, dict) else None
    url = source.get("url") if isinstance(source, dict) else source
    is_web = isinstance(url, str) and url[:8].lower().startswith(("http://", "https://"))
    return url if is_web else None
