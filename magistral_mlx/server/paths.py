"""Middleware that forgives addresses without /v1, or with it or a slash where none belongs.

Apps ask for a "base URL", and each puts something else behind it: people write it with /v1 and
without, and some apps add a second one.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = "/v1"
# What /v1 is left out before, by llama-server's clients and by others'.
_WITHIN = (
    "/chat/completions",
    "/completions",
    "/responses",
    "/messages",
    "/models",
    "/embeddings",
    "/rerank",
    "/reranking",
    "/conversations",
)
# What stands beside /v1, and is asked for within it where the base URL ends with /v1.
_BESIDE = ("/api/", "/tokenize", "/detokenize", "/props", "/version", "/health", "/apply-template")


class PathForgiver:
    """Lead `/chat/completions` and `/v1/v1/chat/completions` to `/v1/chat/completions`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = forgiven(scope["path"])
            if path != scope["path"]:
                scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


def forgiven(path: str) -> str:
    """The address that `path` means."""
    path = path.rstrip("/") or "/"  # else /v1/models/ would ask for a model without a name
    while path.startswith(_PREFIX + _PREFIX + "/"):
        path = path.removeprefix(_PREFIX)
    within = path.removeprefix(_PREFIX)
    if within != path and _begins(within, _BESIDE):
        return within
    return _PREFIX + path if _begins(path, _WITHIN) else path


def _begins(path: str, starts: tuple[str, ...]) -> bool:
    """Whether `path` is one of them, or lies below it."""
    return any(path == start or path.startswith(start.rstrip("/") + "/") for start in starts)
