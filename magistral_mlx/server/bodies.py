"""Middleware for the bodies of requests: their limit, their unpacking, and what is left of them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import Protocol

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from magistral_mlx.server.error_responses import error_response
from magistral_mlx.server.errors import TooLarge, UnsupportedEncoding
from magistral_mlx.server.settings import exact_size

_DRAINED_BYTES = 1 << 30  # of a body that nobody wants, before its connection is closed
_DRAINED_SECONDS = 30.0
_GZIP = 16 + zlib.MAX_WBITS  # for zlib: a header of gzip


class BodyLimit:
    """Refuse a body over the limit, whatever its header says."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _declared(scope) > self._limit:
            error = error_response(TooLarge(_too_large(self._limit)))
            await error.response(scope["path"])(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                # FastAPI passes on this kind of error alone while it reads a body.
                raise HTTPException(TooLarge.status, _too_large(self._limit))
            return message

        await self._app(scope, bounded, send)


class BodyUnpacker:
    """Unpack bodies in gzip or zstd, up to the limit."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = _header(scope, b"content-encoding").decode("latin-1").strip().lower()
        if scope["type"] != "http" or encoding in ("", "identity"):
            await self._app(scope, receive, send)
            return
        make = _DECODERS.get(encoding)
        if make is None:
            error = error_response(
                UnsupportedEncoding(
                    f"Content-Encoding {encoding[:100]!r} is not supported: send the body in gzip "
                    "or zstd, or as it is."
                )
            )
            await error.response(scope["path"])(scope, receive, send)
            return
        unpack = _Unpacking(encoding, make, self._limit)

        async def unpacked() -> Message:
            message = await receive()
            if message["type"] != "http.request":
                return message
            body = unpack.feed(message.get("body", b""))
            if not message.get("more_body", False):
                unpack.finish()
            return {**message, "body": body}

        packed = (b"content-encoding", b"content-length")
        headers = [(name, value) for name, value in scope["headers"] if name not in packed]
        await self._app({**scope, "headers": headers}, unpacked, send)


class BodyDrain:
    """Read what is left of a body once it was refused.

    A client sends its whole request before it reads the response. Closed in the midst of that,
    the connection is reset, and the response never read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _header(scope, b"expect"):  # it waits before it sends
            await self._app(scope, receive, send)
            return
        read = not (_declared(scope) or _header(scope, b"transfer-encoding"))
        refused = False

        async def watched() -> Message:
            nonlocal read
            message = await receive()
            read = read or not message.get("more_body", False)
            return message

        async def draining(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                refused = message["status"] >= 400 and not read
            elif refused and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _drain(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self._app(scope, watched, draining)


async def _drain(receive: Receive) -> None:
    """Read a body to its end, or to the bounds of what is done for a client."""
    left = _DRAINED_BYTES
    try:
        async with asyncio.timeout(_DRAINED_SECONDS):
            while left > 0:
                message = await receive()
                if not message.get("more_body", False):
                    return
                left -= len(message.get("body", b""))
    except TimeoutError:
        return


class _Decoder(Protocol):
    """What zlib and zstd share."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip() -> _Decoder:
    return zlib.decompressobj(_GZIP)


def _zstd() -> _Decoder:
    from backports.zstd import ZstdDecompressor

    return ZstdDecompressor()


_DECODERS: dict[str, Callable[[], _Decoder]] = {"gzip": _gzip, "x-gzip": _gzip, "zstd": _zstd}


class _Unpacking:
    """One body on its way out of its packing."""

    def __init__(self, encoding: str, make: Callable[[], _Decoder], limit: int) -> None:
        self._encoding, self._make, self._limit = encoding, make, limit
        self._decoder = make()
        self._length = 0

    def feed(self, data: bytes) -> bytes:
        """Unpack more of the body.

        Raises:
            HTTPException: it is damaged, or longer than the limit.
        """
        found = bytearray()
        try:
            while data:
                if self._decoder.eof:
                    self._decoder = self._make()
                room = self._limit + 1 - self._length - len(found)
                found += self._decoder.decompress(data, room)
                if self._length + len(found) > self._limit:
                    raise HTTPException(TooLarge.status, _too_large(self._limit))
                data = self._decoder.unused_data if self._decoder.eof else b""
        except HTTPException:
            raise
        except Exception as error:  # zlib and zstd have kinds of their own
            raise self._damaged(f"it cannot be unpacked ({error})") from None
        self._length += len(found)
        return bytes(found)

    def finish(self) -> None:
        """Check that the body was whole. Raises HTTPException if it was not."""
        if not self._decoder.eof:
            raise self._damaged("it ends too early")

    def _damaged(self, why: str) -> HTTPException:
        return HTTPException(400, f"the body is no {self._encoding}, its Content-Encoding: {why}.")


def _too_large(limit: int) -> str:
    return (
        f"the request has more than {exact_size(limit)}. Send fewer or smaller images, or start "
        "the server with a higher --max-body."
    )


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope.get("headers", ()) if key == name), b"")


def _declared(scope: Scope) -> int:
    """Bytes that the header tells; 0 if it tells none."""
    value = _header(scope, b"content-length")
    return int(value[:20]) if value.isdigit() else 0
