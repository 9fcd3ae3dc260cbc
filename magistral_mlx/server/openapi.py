"""The OpenAPI document's responses: errors, headers, streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from magistral_mlx.server.error_responses import OpenAIError

# Examples of ids: nothing of these exists at first.
_EXAMPLES = {
    "/v1/responses/": {"id": "resp_0123456789abcdef"},
    "/v1/conversations/": {"id": "conv_0123456789abcdef", "item_id": "msg_0123456789abcdef"},
}
_REF = "#/components/schemas/{model}"
_KEY = {"WWW-Authenticate": {"description": "Bearer", "schema": {"type": "string"}}}
_RETRY = {
    "Retry-After": {
        "description": "Seconds after which to try again",
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
    400: ("A field is invalid, missing or too long; the message names it", {}),
    401: ("The API key is missing or wrong", _KEY),
    403: ("A host or the origin of a web page that is not allowed", {}),
    404: ("No model or response of that name", {}),
    413: ("The body is over the size limit", {}),
    429: ("The queue is full", _RETRY),
    500: ("The server or the device failed", {}),
    503: ("The model cannot be loaded, or the server is shutting down", _RETRY),
}


def error_responses(
    shape: type[BaseModel], *statuses: int, rest: dict[int | str, dict[str, Any]]
) -> dict[int | str, dict[str, Any]]:
    """For `responses` of a route: the errors of these statuses, added to `rest`."""
    found = dict(rest)
    for status in statuses:
        description, headers = _ERRORS[status]
        found[status] = {"model": shape, "description": description}
        if headers:
            found[status]["headers"] = headers
    return found


def stream_response(
    event: type[BaseModel], description: str, *, done: bool = False
) -> dict[str, Any]:
    """For `responses[200]` of a route that may stream: the schema of its events.

    Args:
        event: schema of an event's data. `describe` adds it to the document.
        done: whether the last event is [DONE], and an error is an event of OpenAI's format.
    """
    schema: dict[str, Any] = _ref(event)
    if done:
        schema = {"anyOf": [schema, _ref(OpenAIError)]}
    data: dict[str, Any] = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": schema,
    }
    if done:
        data = {"anyOf": [data, {"const": "[DONE]"}]}
    each = {
        "type": "object",
        "description": "An event of the stream",
        "properties": {"event": {"type": "string"}, "data": data},
        "required": ["data"],
    }
    return {
        "description": description,
        "headers": _STREAM_HEADERS,
        "content": {"text/event-stream": {"schema": each}},
    }


def lines_response(line: type[BaseModel], description: str) -> dict[str, Any]:
    """For `responses[200]` of a route that may stream lines of JSON, each a `line`."""
    return {
        "description": description,
        "headers": _STREAM_HEADERS,
        "content": {
            "application/x-ndjson": {
                "schema": {"type": "string"},
                "itemSchema": _ref(line),
            }
        },
    }


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}


def describe(app: FastAPI, *, model: str, events: Sequence[type[BaseModel]], keyed: bool) -> None:
    """Complete the OpenAPI document of `app` on its first request.

    Args:
        model: a model name for the examples that need one.
        events: schemas of the events of streams.
        keyed: whether requests need a key.
    """
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            _add_events(document, events)
            models = {start: {"id": model} for start in ("/v1/models/", "/api/v0/models/")}
            _fill_in(document, _EXAMPLES | models)
            _name_model(document, model)
            if keyed:
                _add_keys(document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_events(document: dict[str, Any], events: Sequence[type[BaseModel]]) -> None:
    _, found = models_json_schema([(event, "serialization") for event in events], ref_template=_REF)
    schemas = document["components"]["schemas"]
    document["components"]["schemas"] = found.get("$defs", {}) | schemas


def _fill_in(document: dict[str, Any], examples: Mapping[str, Mapping[str, str]]) -> None:
    """Set the examples of the parameters in paths, by the beginnings of the paths."""
    for path, operations in document["paths"].items():
        for start, values in examples.items():
            for operation in operations.values() if path.startswith(start) else ():
                for parameter in operation.get("parameters", ()):
                    if parameter["in"] == "path":
                        parameter["example"] = values[parameter["name"]]


def _name_model(document: dict[str, Any], model: str) -> None:
    """Set the model in the examples of bodies that must name one."""
    for path, operations in document["paths"].items():
        for operation in operations.values() if path.startswith("/api/") else ():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in body.get("examples", {}).values():
                example["value"]["model"] = model


def _add_keys(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    document["security"] = [{"bearer": []}, {"key": []}]
