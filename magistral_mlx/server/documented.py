"""What the OpenAPI document tells of responses: errors, headers, streams."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

_KEY = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
_RETRY = {
    "Retry-After": {
        "description": "Seconds after which to come again",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_STREAM_HEADERS = {
    "Cache-Control": {"description": "no-store", "schema": {"type": "string"}},
    "X-Accel-Buffering": {
        "description": "no: a proxy passes each event on at once",
        "schema": {"type": "string"},
    },
}
_ERRORS: dict[int, tuple[str, dict[str, Any]]] = {
    400: ("A field is wrong, missing or too long; the message names it", {}),
    401: ("The API key is missing or wrong", _KEY),
    403: ("A host or a web page that is not let in", {}),
    404: ("There is no model of that name", {}),
    413: ("The body is larger than this server takes", {}),
    429: ("As many requests wait as this server lets wait", _RETRY),
    500: ("The server or the device failed", {}),
    503: ("The model cannot be loaded, or the server is shutting down", _RETRY),
}


def error_responses(
    shape: type[BaseModel], *statuses: int, rest: dict[int | str, dict[str, Any]]
) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route: the errors of these statuses, after what `rest` says of all."""
    found = dict(rest)
    for status in statuses:
        description, headers = _ERRORS[status]
        found[status] = {"model": shape, "description": description}
        if headers:
            found[status]["headers"] = headers
    return found


def stream_response(chunk: type[BaseModel] | dict[str, Any], description: str) -> dict[str, Any]:
    """For `responses[200]` of a route that may stream: what each event's data is."""
    schema = chunk if isinstance(chunk, dict) else chunk.model_json_schema(mode="serialization")
    return {
        "description": description,
        "headers": _STREAM_HEADERS,
        "content": {"text/event-stream": {"itemSchema": schema, "schema": {"type": "string"}}},
    }
