"""Pictures that messages name by a web address, fetched where the server is allowed to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.remote_pictures import fetch_picture
from magistral_mlx.server.settings import Settings


async def with_web_pictures(
    messages: Sequence[dict[str, Any]], settings: Settings
) -> list[dict[str, Any]]:
    """`messages` (chat dicts) with the bytes of pictures in place of their web addresses.

    Raises:
        PictureError: fetching is off, or failed.
        BadRequest: more of them than the server takes.
    """
    places = _places(messages)
    if len(places) > settings.limits.pictures:
        raise BadRequest(
            f"the request names {len(places)} pictures on the web, and this server takes "
            f"{settings.limits.pictures} at most. Send fewer."
        )
    changed = list(messages)
    for n, m, url in places:
        where = f"messages[{n}].content[{m}].image_url"
        content = list(changed[n]["content"])
        content[m] = {"type": "image", "image": await fetch_picture(url, settings, where=where)}
        changed[n] = changed[n] | {"content": content}
    return changed


def _places(messages: Sequence[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """Message, part and address of each."""
    found = []
    for n, message in enumerate(messages):
        content = message.get("content")
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
