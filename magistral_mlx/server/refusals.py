"""Why a server does not answer a request, each with its HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from magistral_mlx.errors import MagistralError


class Refusal(MagistralError):
    """The base of them. `param` names the field that is wrong, `code` is for programs."""

    status: ClassVar[int] = 400
    code: ClassVar[str | None] = None

    def __init__(
        self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.param = param
        self.headers = dict(headers or {})


class BadRequest(Refusal):
    """A request that makes no sense, or asks for what there is not."""


class InvalidJSON(Refusal):
    """A body that cannot be read as JSON."""

    code = "invalid_json"


class NotAuthorized(Refusal):
    """No API key, or a wrong one."""

    status, code = 401, "invalid_api_key"


class Forbidden(Refusal):
    """A web page or a host name that is not let in."""

    status, code = 403, "forbidden"


class NotFound(Refusal):
    """No such route."""

    status, code = 404, "not_found"


class UnknownModel(NotFound):
    """A model that this server does not have."""

    code = "model_not_found"


class TooLarge(Refusal):
    """A body beyond the limit."""

    status, code = 413, "request_too_large"


class Busy(Refusal):
    """Too many requests wait already. `Retry-After` tells when to come again, in seconds."""

    status, code = 429, "queue_full"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})


class ClientGone(Refusal):
    """The client has left before its answer began; nobody reads this."""

    status, code = 499, "client_gone"


class Unavailable(Refusal):
    """The model could not be loaded, or the server is shutting down."""

    status, code = 503, "unavailable"
