"""What went wrong, as an HTTP status and a body in the shape that the client's library reads.

OpenAI's shape everywhere, Anthropic's under /v1/messages. Never a traceback: those go to the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from magistral_mlx.errors import (
    ContextOverflow,
    DeviceError,
    ImageError,
    InvalidOption,
    MagistralError,
    ModelClosed,
    OutOfMemory,
    PromptError,
)
from magistral_mlx.server.refusals import Refusal
from magistral_mlx.server.validation import problem_of

_log = logging.getLogger("magistral_mlx.server")
_ANTHROPIC_PATH = "/v1/messages"

# What a client did wrong, by kind: status and code. The first that fits counts.
_KINDS: tuple[tuple[type[MagistralError], int, str | None], ...] = (
    (ContextOverflow, 400, "context_length_exceeded"),
    (PromptError, 400, None),
    (ImageError, 400, "invalid_image"),
    (InvalidOption, 400, None),
    (OutOfMemory, 400, "out_of_memory"),
    (ModelClosed, 503, "unavailable"),
    (DeviceError, 500, "device_error"),
)
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class OpenAIErrorDetail(BaseModel):
    """What was wrong; `param` names the field, `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """An error as OpenAI's API reports it."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(BaseModel):
    """What was wrong."""

    type: str
    message: str


class AnthropicError(BaseModel):
    """An error as Anthropic's API reports it."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail


# For `APIRouter(responses=...)`, so that the OpenAPI document tells of errors as they are.
OPENAI_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": OpenAIError, "description": "The request is wrong, or comes too early"},
    "5XX": {"model": OpenAIError, "description": "The server failed, or is not ready"},
}
ANTHROPIC_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": AnthropicError, "description": "The request is wrong, or comes too early"},
    "5XX": {"model": AnthropicError, "description": "The server failed, or is not ready"},
}


@dataclass(frozen=True)
class Failure:
    """An error as a client gets it, whole or as an event within a stream."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def openai(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}"""
        detail = {"message": self.message, "type": self._openai_type}
        return {"error": detail | {"param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """{"type": "error", "error": {type, message}}"""
        kind = _ANTHROPIC_TYPES.get(self.status)
        kind = kind or ("api_error" if self.status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def body(self, path: str) -> dict[str, Any]:
        """In the shape of the API that `path` belongs to."""
        within = path == _ANTHROPIC_PATH or path.startswith(_ANTHROPIC_PATH + "/")
        return self.anthropic() if within else self.openai()

    def response(self, path: str) -> JSONResponse:
        return JSONResponse(self.body(path), self.status, dict(self.headers))

    @property
    def _openai_type(self) -> str:
        if self.status >= 500:
            return "server_error"
        return {
            401: "authentication_error",
            403: "permission_error",
            429: "rate_limit_error",
        }.get(self.status, "invalid_request_error")


def failure_of(error: BaseException) -> Failure:
    """How an error is reported. One that nobody foresaw is logged, and told without details."""
    match error:
        case Refusal():
            return Failure(error.status, str(error), error.param, error.code, error.headers)
        case RequestValidationError():
            param, message = problem_of(error)
            return Failure(400, message, param=param)
        case HTTPException():
            return _of_http(error)
        case MagistralError():
            for kind, status, code in _KINDS:
                if isinstance(error, kind):
                    return Failure(status, str(error), code=code)
            return Failure(500, str(error), code="internal_error")
    _log.error("an error that nobody foresaw", exc_info=error)
    return Failure(
        500,
        f"something went wrong in the server ({type(error).__name__}). Its log tells more.",
        code="internal_error",
    )


def install_handlers(app: FastAPI) -> None:
    """Report every error of `app` as `failure_of` tells."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return failure_of(error).response(request.url.path)

    for kind in (MagistralError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def _of_http(error: HTTPException) -> Failure:
    status = error.status_code
    if status == 404:
        message = "there is nothing at this address. /openapi.json lists what there is."
    elif status == 405:
        message = "this address does not take that method. /openapi.json lists what it takes."
    else:
        message = str(error.detail) or HTTPStatus(status).phrase
    code = {404: "not_found", 413: "request_too_large"}.get(status)
    return Failure(status, message, code=code, headers=error.headers or {})
