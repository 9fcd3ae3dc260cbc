"""Errors that a request is answered with, each with its HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from magistral_mlx.errors import MagistralError


class APIError(MagistralError):
    """Base of the server's errors. `param` names the wrong field, `code` is for programs.

    details: facts for programs, in Anthropic's format.
    """

    status: ClassVar[int] = 400
    code: ClassVar[str | None] = None
    details: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.headers = dict(headers or {})


class BadRequest(APIError):
    """An invalid request, or one for something unsupported."""


class NotSupported(BadRequest):
    """An endpoint that other servers have. With a 5xx clients would try again."""

    code = "not_supported"


class ThreadUnsupported(BadRequest):
    """A message of a thread. Anthropic's SDK then sends the whole conversation by itself."""

    details: ClassVar[Mapping[str, Any]] = {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


class InvalidJSON(APIError):
    """A body that is not valid JSON."""

    code = "invalid_json"


class NotAuthorized(APIError):
    """A missing or wrong API key."""

    status, code = 401, "invalid_api_key"


class Forbidden(APIError):
    """A host name or the origin of a web page that is not allowed."""

    status, code = 403, "forbidden"


class NotFound(APIError):
    """Nothing at this address or under this id."""

    status, code = 404, "not_found"


class UnknownModel(NotFound):
    """A model name that this server does not serve."""

    code = "model_not_found"


class TooLarge(APIError):
    """A body over the size limit."""

    status, code = 413, "request_too_large"


class UnsupportedEncoding(APIError):
    """A body that is packed in a way that this server cannot unpack."""

    status, code = 415, "unsupported_encoding"


class Busy(APIError):
    """A full queue. `Retry-After` holds the seconds until a new try."""

    status, code = 429, "queue_full"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class ClientGone(APIError):
    """A client that disconnected before its answer began; nobody reads this."""

    status, code = 499, "client_gone"


class Unavailable(APIError):
    """The model could not be loaded, MCP servers are not connected, or the server shuts down."""

    status, code = 503, "unavailable"
