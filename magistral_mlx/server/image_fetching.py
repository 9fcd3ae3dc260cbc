"""Images that messages name by a web address, fetched where the server is allowed to.

A client must not reach through the server what it cannot reach itself. So a host's addresses are
looked up once, each must be public, and the connection goes to the very address that was checked;
a redirect is another address, checked the same way. No proxy, no cookies, no credentials.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

import h11

from magistral_mlx.api.inputs import PromptLike
from magistral_mlx.errors import ImageError
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.settings import MIB, Settings, exact_size

_MOST_BYTES = 20 * MIB
_SECONDS = 20.0  # for one image, redirects included
_AT_ONCE = 4  # requests whose images are fetched
_SECONDS_ALL = 60.0  # for all images of one request
_REDIRECTS = 3
_MOVED = (301, 302, 303, 307, 308)
_READ = 64 << 10
# The allocated part of IPv6. Outside of it are NAT64 and other forms that carry an IPv4 address,
# which may be a private one, site-local addresses and segment routing.
_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")
_RELAYS = ipaddress.IPv4Network("192.88.99.0/24")  # into 6to4, long out of use


@dataclass(frozen=True)
class _Response:
    status: int
    location: str | None
    body: bytes


class ImageFetcher:
    """Fetch the images of requests, for a few requests at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def fetch_all(self, prompt: PromptLike) -> PromptLike:
        """Return `prompt` with the bytes of images in place of their web addresses.

        Cancelling the task closes the connections.

        Raises:
            ImageError: fetching is off, failed, or took too long.
            BadRequest: too many images or bytes.
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
            async with self._slots, asyncio.timeout(_SECONDS_ALL):
                return await self._fetch(prompt, places)
        except TimeoutError:
            raise ImageError(
                f"the images on the web did not arrive within {_SECONDS_ALL:g} seconds together. "
                "Send their bytes as data URLs."
            ) from None

    async def _fetch(self, prompt: Any, places: list[tuple[int, int, str]]) -> PromptLike:
        most, taken = self._settings.limits.body_bytes, 0
        changed = list(prompt)
        for n, m, url in places:
            content = list(changed[n]["content"])
            where = content[m].get("where", f"messages[{n}].content[{m}].image_url")
            try:
                image = await fetch_image(url, self._settings, where=where)
            except ImageError as error:
                error.where = where
                raise
            taken += len(image)
            if taken > most:
                raise BadRequest(
                    f"the images on the web have more than {exact_size(most)} together. Send "
                    "fewer or smaller ones, or start the server with a higher --max-body."
                )
            content[m] = {"type": "image", "image": image, "where": where}
            changed[n] = changed[n] | {"content": content}
        return changed


async def fetch_image(url: str, settings: Settings, *, where: str = "image_url") -> bytes:
    """The bytes at a http(s) URL.

    Args:
        where: what names the image in errors, such as messages[0].content[1].image_url.

    Raises:
        ImageError: fetching is off, the address is not public, it cannot be reached, or there is
            too much.
    """
    if not settings.allow_remote_images:
        raise ImageError(
            f"{where} is a web address, and this server fetches nothing. Send the image as a "
            "data URL (data:image/png;base64,…), or start it with --allow-remote-images."
        )
    try:
        async with asyncio.timeout(_SECONDS):
            return await _follow(url, where)
    except TimeoutError:
        raise ImageError(f"{where} did not arrive within {_SECONDS:g} seconds.") from None
    except (OSError, h11.ProtocolError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{where} cannot be fetched: {reason}.") from error


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the internet at large, whatever form it is written in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return is_public(str(ip.ipv4_mapped))
        if ip not in _GIVEN_OUT or ip.sixtofour or ip.teredo:
            return False
    elif ip in _RELAYS:
        return False
    return ip.is_global and not ip.is_multicast


async def _follow(url: str, where: str) -> bytes:
    for _ in range(_REDIRECTS + 1):
        answer = await _get(_checked(url, where), where)
        if answer.status in _MOVED and answer.location:
            url = _redirected(url, answer.location, where)
        elif answer.status == 200:
            return answer.body
        else:
            raise ImageError(f"{where} cannot be fetched: its server answers {answer.status}.")
    raise ImageError(f"{where} leads through more than {_REDIRECTS} redirects.")


def _redirected(url: str, location: str, where: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise ImageError(f"{where} is redirected to what is no URL: {error}.") from None


def _checked(url: str, where: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError as error:
        raise ImageError(f"{where} is no URL: {error}.") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise ImageError(f"{where} must lead to a http:// or https:// address.")
    if parts.username is not None or parts.password is not None:
        raise ImageError(f"{where} holds a user name or password, which is never sent.")
    return parts


async def _get(url: SplitResult, where: str) -> _Response:
    host = url.hostname or ""
    secure = url.scheme == "https"
    port = url.port or (443 if secure else 80)
    address = await _address_of(host, port, where)
    context = ssl.create_default_context() if secure else None
    reader, writer = await asyncio.open_connection(
        address, port, ssl=context, server_hostname=host if secure else None
    )
    try:
        connection = h11.Connection(h11.CLIENT)
        writer.write(_request(connection, url, host))
        await writer.drain()
        return await _read(connection, reader, where)
    finally:
        writer.close()


async def _address_of(host: str, port: int, where: str) -> str:
    """The address to connect to; all that the name stands for must be public."""
    try:
        ascii_host = host.encode("idna").decode() if not host.isascii() else host
        found = await asyncio.get_running_loop().getaddrinfo(
            ascii_host, port, type=socket.SOCK_STREAM
        )
    except (OSError, UnicodeError):
        raise ImageError(f"{where}: there is no host {host[:100]!r}.") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise ImageError(
            f"{where} leads to {host[:100]!r}, which is not a public address. Images are "
            "fetched from the internet only."
        )
    return addresses[0]


def _request(connection: h11.Connection, url: SplitResult, host: str) -> bytes:
    name = f"[{host}]" if ":" in host else host.encode("idna").decode()
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    target = quote(target, safe="/?:@!$&'()*+,;=-._~%[]")
    request = h11.Request(
        method="GET",
        target=target,
        headers=[
            ("Host", name if url.port is None else f"{name}:{url.port}"),
            ("User-Agent", "magistral-mlx"),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ],
    )
    return (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")


async def _read(connection: h11.Connection, reader: asyncio.StreamReader, where: str) -> _Response:
    status, location, body = 0, None, bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ))
        elif isinstance(event, h11.Response):
            status, headers = event.status_code, dict(event.headers)
            location = headers.get(b"location", b"").decode("latin-1") or None
            if status != 200:
                return _Response(status, location, b"")
            if headers.get(b"content-encoding", b"identity") != b"identity":
                raise ImageError(f"{where} comes compressed, which was not asked for.")
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _MOST_BYTES:
                raise ImageError(f"{where} has more than {_MOST_BYTES // MIB} MiB.")
        elif isinstance(event, h11.EndOfMessage):
            return _Response(status, location, bytes(body))
        elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
            raise ImageError(f"{where} cannot be fetched: its server hung up.")


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
