"""Errors as HTTP responses, in the format that the client's library reads.

OpenAI's format everywhere, Anthropic's under /v1/messages, Ollama's under /api. Tracebacks go to
the log only.
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
    DocumentError,
    ImageError,
    InvalidOption,
    MagistralError,
    MissingExtra,
    ModelClosed,
    OutOfMemory,
    PromptError,
    RankLost,
    ToolServerError,
)
from magistral_mlx.server.errors import APIError
from magistral_mlx.server.validation_errors import validation_error

_log = logging.getLogger("magistral_mlx.server")
_ANTHROPIC_PATH = "/v1/messages"
_OLLAMA_PATH = "/api/"

# Status and code of each kind of error. The first that fits counts.
_KINDS: tuple[tuple[type[MagistralError], int, str | None], ...] = (
    (ContextOverflow, 400, "context_length_exceeded"),
    (PromptError, 400, None),
    (ImageError, 400, "invalid_image"),
    (DocumentError, 400, "invalid_document"),
    (MissingExtra, 400, "missing_package"),
    (ToolServerError, 404, "unknown_tool"),
    (InvalidOption, 400, None),
    (OutOfMemory, 400, "out_of_memory"),
    (ModelClosed, 503, "unavailable"),
    (RankLost, 503, "unavailable"),
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
    """Details of an error; `param` names the field, `code` is for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """An error as OpenAI's API reports it."""

    error: OpenAIErrorDetail


class AnthropicErrorDetail(BaseModel):
    """Details of an error."""

    type: str
    message: str
    details: dict[str, Any] | None = None


class AnthropicError(BaseModel):
    """An error as Anthropic's API reports it."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail


# For `APIRouter(responses=...)`, so that the OpenAPI document describes errors.
OPENAI_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": OpenAIError,
        "description": "The request is invalid, or refused for now",
    },
    "5XX": {"model": OpenAIError, "description": "The server failed, or is not ready"},
}
ANTHROPIC_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": AnthropicError,
        "description": "The request is invalid, or refused for now",
    },
    "5XX": {"model": AnthropicError, "description": "The server failed, or is not ready"},
}


@dataclass(frozen=True)
class ErrorResponse:
    """An error as a client gets it, as a response or as an event of a stream.

    anthropic_message: the message in Anthropic's words, where they differ.
    """

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    anthropic_message: str | None = None

    def openai(self) -> dict[str, Any]:
        """{"error": {message, type, param, code}}"""
        detail = {"message": self.message, "type": self._openai_type}
        return {"error": detail | {"param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """{"type": "error", "error": {type, message}}, with details if there are any."""
        kind = _ANTHROPIC_TYPES.get(self.status)
        kind = kind or ("api_error" if self.status >= 500 else "invalid_request_error")
        message = self.anthropic_message or self.message
        error: dict[str, Any] = {"type": kind, "message": message}
        if self.details:
            error["details"] = dict(self.details)
        return {"type": "error", "error": error}

    def ollama(self) -> dict[str, Any]:
        """{"error": message}"""
        return {"error": self.message}

    def body(self, path: str) -> dict[str, Any]:
        """In the format of the API that `path` belongs to."""
        if path.startswith(_OLLAMA_PATH):
            return self.ollama()
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


def error_response(error: BaseException) -> ErrorResponse:
    """The response to an error. An unexpected one is logged, and reported without details."""
    match error:
        case APIError():
            return ErrorResponse(
                error.status, str(error), error.param, error.code, error.headers, error.details
            )
        case RequestValidationError():
            param, message = validation_error(error)
            return ErrorResponse(400, message, param=param)
        case HTTPException():
            return _of_http(error)
        case ContextOverflow() if error.context:
            return _context_overflow(error)
        case MagistralError():
            for kind, status, code in _KINDS:
                if isinstance(error, kind):
                    param = error.where if isinstance(error, ImageError) else None
                    return ErrorResponse(status, str(error), param=param, code=code)
            return ErrorResponse(500, str(error), code="internal_error")
    _log.error("unexpected error", exc_info=error)
    return ErrorResponse(
        500,
        f"internal error of the server ({type(error).__name__}). See its log.",
        code="internal_error",
    )


def _context_overflow(error: ContextOverflow) -> ErrorResponse:
    """The words by which clients recognise that they have to compact the conversation."""
    openai = f"maximum context length is {error.context} tokens"
    anthropic = f"prompt is too long: {error.prompt_tokens} tokens > {error.context} maximum"
    return ErrorResponse(
        400,
        f"this model's {openai}: {error}",
        code="context_length_exceeded",
        anthropic_message=f"{anthropic}: {error}",
    )


def install_handlers(app: FastAPI) -> None:
    """Report every error of `app` by `error_response`."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return error_response(error).response(request.url.path)

    for kind in (MagistralError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def _of_http(error: HTTPException) -> ErrorResponse:
    status = error.status_code
    if status == 404:
        message = (
            "there is nothing at this address. A client's base URL ends with /v1 here, Anthropic's "
            "and Ollama's without it; /openapi.json lists all addresses."
        )
    elif status == 405:
        message = "this address does not take that method. /openapi.json lists its methods."
    else:
        message = str(error.detail) or HTTPStatus(status).phrase
    code = {404: "not_found", 413: "request_too_large"}.get(status)
    return ErrorResponse(status, message, code=code, headers=error.headers or {})
