"""What comes in is bounded, and what goes wrong goes out in a shape that clients read."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from magistral_mlx.server.failures import failure_of
from magistral_mlx.server.refusals import TooLarge
from magistral_mlx.server.settings import MIB


class BodyLimit:
    """Stops reading a body that grows beyond the limit, whatever its header says."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._declared(scope) > self._limit:
            await failure_of(TooLarge(self._message)).response(scope["path"])(scope, receive, send)
            return
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit:
                # FastAPI passes on this kind of error alone while it reads a body.
                raise HTTPException(TooLarge.status, self._message)
            return message

        await self._app(scope, bounded, send)

    @property
    def _message(self) -> str:
        return (
            f"the request has more than {self._limit / MIB:.4g} MiB. Send fewer or smaller "
            "images, or start the server with a higher --max-body."
        )

    def _declared(self, scope: Scope) -> int:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit():
                return int(value[:20])
        return 0


class LastResort:
    """Reports errors that no handler has taken, unless a response has begun."""

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
            await failure_of(error).response(scope["path"])(scope, receive, send)
