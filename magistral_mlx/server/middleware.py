"""Middleware around the application: host and key checks, metrics, last errors.

A web page that somebody has open must not reach a server on their own machine. Its browser tells
where a request comes from (Origin), and that is refused unless it is this server's own page. A
page could rename itself to this machine (DNS rebinding), which shows in the Host header.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from urllib.parse import urlsplit

from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from magistral_mlx.server.error_responses import error_response
from magistral_mlx.server.errors import APIError, Forbidden, NotAuthorized
from magistral_mlx.server.settings import LOOPBACK, Settings

_OTHER = "other"  # all paths that do not exist: a client must not fill the memory with names
_EVERYWHERE = ("0.0.0.0", "::")
# Not secret: a browser has to get the page before the page can ask for a key.
_OPEN = ("/", "/health", "/ready", "/openapi.json")
_OPEN_FOLDER = "/static/"


class HostGuard:
    """Refuse requests for another host name, or from another web page."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._listens_everywhere = settings.host in _EVERYWHERE
        self._hosts = {name.lower().strip("[]") for name in (*LOOPBACK, *settings.allowed_hosts)}
        if not self._listens_everywhere:
            self._hosts.add(settings.host.lower())
        self._origins = set(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            error = self._error(Headers(scope=scope))
            if error is not None:
                await error_response(error).response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _error(self, headers: Headers) -> APIError | None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._is_ours(host):
            return Forbidden(
                f"this server does not answer for the host {host[:100]!r}. Start it with "
                "--allow-host NAME if that is its name."
            )
        if not all(self._may_come_from(origin, host) for origin in origins):
            return Forbidden(
                f"web pages of {origins[0][:100]!r} may not use this server. Start it with "
                "--cors ORIGIN to let them."
            )
        return None

    def _is_ours(self, host: str) -> bool:
        name = _name_in(host)
        if name is None:
            return False
        # An address is no name that could be made to stand for another machine.
        return name in self._hosts or (self._listens_everywhere and _is_address(name))

    def _may_come_from(self, origin: str, host: str) -> bool:
        if origin in self._origins or "*" in self._origins:
            return True
        return origin.lower() in (f"http://{host.lower()}", f"https://{host.lower()}")


class KeyGuard:
    """Refuse requests without the API key, in `Authorization: Bearer` or `x-api-key`."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._digest = _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope) and not self._has_key(scope):
            error = NotAuthorized(
                "a valid API key is missing: send it as `Authorization: Bearer KEY` or as "
                "`x-api-key: KEY`.",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await error_response(error).response(scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"x-api-key"]
        for name, value in scope["headers"]:
            scheme, _, credentials = value.partition(b" ")
            if name == b"authorization" and scheme.lower() == b"bearer":
                given.append(credentials.strip())
        # Their digests, which are of one length, so that time tells nothing of the key.
        return any(hmac.compare_digest(_digest(key), self._digest) for key in given)


class UnhandledErrors:
    """Respond to errors that no handler has taken, unless a response has begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return  # while its body was read: nobody waits for a response
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            await error_response(error).response(scope["path"])(scope, receive, send)


class RequestCounter:
    """Count responses by endpoint and status."""

    def __init__(self, app: ASGIApp, counter: Counter) -> None:
        """`counter` has the labels endpoint and status."""
        self._app = app
        self._counter = counter
        self._patterns: list[tuple[re.Pattern[str], str]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._counter.labels(self._endpoint(scope), message["status"]).inc()
            await send(message)

        await self._app(scope, receive, counted)

    def _endpoint(self, scope: Scope) -> str:
        """The path as it was declared, such as /v1/models/{id}."""
        if not self._patterns:
            paths = ["/", "/openapi.json", *scope["app"].openapi()["paths"]]
            # A parameter may hold slashes, as the names of models do.
            self._patterns = [
                (compile_path(path.replace("}", ":path}"))[0], path) for path in paths
            ]
        for pattern, path in self._patterns:
            if pattern.match(scope["path"]):
                return path
        return "/static" if scope["path"].startswith("/static/") else _OTHER


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_open(scope: Scope) -> bool:
    if scope["method"] not in ("GET", "HEAD"):
        return False
    return scope["path"] in _OPEN or scope["path"].startswith(_OPEN_FOLDER)


def _name_in(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  (raises for one that is no number)
    except ValueError:
        return None
    if parts.netloc != host or "@" in host:
        return None
    return parts.hostname


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
