"""The chat page: its files, and the headers that keep what a model writes from doing harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

STATIC = Path(__file__).parent / "static"

# Scripts and styles come from files of this server alone, and the page reaches no other host:
# markup that a model writes can run nothing and load nothing. Only the sanitiser ("dompurify")
# may turn a string into elements at all.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "font-src 'self'",
        "img-src 'self' data:",
        "manifest-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cache-Control": "no-cache",  # ask each time, by ETag: a new version shows at once
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageFiles(StaticFiles):
    """The page's files, each with `HEADERS`."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


async def _index(_request: Request) -> Response:
    return FileResponse(STATIC / "index.html", headers=HEADERS)


def mount_page(app: Starlette | Any) -> None:
    """Serve the page at `/` and its files below `/static/`.

    Both are open to everybody who may talk to the server: they hold no secret, and a browser
    cannot send an API key before the page has asked for it.
    """
    app.add_route("/", _index, methods=["GET", "HEAD"], include_in_schema=False)
    app.mount("/static", PageFiles(directory=STATIC), name="static")
