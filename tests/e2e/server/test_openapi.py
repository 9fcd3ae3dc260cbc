"""The OpenAPI document, as somebody who tests APIs imports it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from magistral_mlx.server.settings import Settings
from tests.serving import Server, live_server


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    status, document = server.get("/openapi.json")
    assert status == 200
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def examples(operation: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Named bodies; one without a body for an operation that takes none."""
    body = operation.get("requestBody")
    if body is None:
        yield "", None
        return
    for name, example in body["content"]["application/json"]["examples"].items():
        yield name, example["value"]


def test_every_example_is_answered_as_the_document_says(server: Server, document: dict[str, Any]):
    sent = 0
    for method, path, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                path = path.replace("{" + parameter["name"] + "}", parameter["example"])
        for name, body in examples(operation):
            status, answer = server.request(method, path, body)
            missing = re.match("/v1/(responses/resp|conversations/conv)_", path)
            expected = 404 if missing else 200  # none is there at first
            assert status == expected, (method, path, name, answer)
            check_answer(answer, operation["responses"][str(status)]["content"], document)
            sent += 1
    assert sent > 25


def test_errors_are_as_the_document_says(server: Server, document: dict[str, Any]):
    for path in ("/v1/chat/completions", "/v1/messages"):
        status, answer = server.post(path, {"messages": []})
        told = document["paths"][path]["post"]["responses"][str(status)]
        check(answer, told["content"]["application/json"]["schema"], document)
        assert "Retry-After" in document["paths"][path]["post"]["responses"]["429"]["headers"]


def test_every_schema_that_is_referred_to_is_there(document: dict[str, Any]):
    text = json.dumps(document)
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert referred and referred <= set(document["components"]["schemas"])
    assert not [name for name in referred if "__" in name]  # two classes of one name


def test_every_operation_says_what_it_does(document: dict[str, Any]):
    for method, path, operation in operations(document):
        assert operation["summary"] and operation["responses"], (method, path)
        assert any(status.startswith("4") for status in operation["responses"]), path


def test_a_server_with_a_key_says_how_to_send_it():
    with live_server(Settings(models=("demo",), api_key="secret"), ready=False) as server:
        _, document = server.get("/openapi.json")
    assert document["security"] == [{"bearer": []}, {"key": []}]
    assert "secret" not in json.dumps(document)


def check_answer(answer: Any, content: dict[str, Any], document: dict[str, Any]) -> None:
    """A whole answer or a stream is as `content` says of it."""
    if not isinstance(answer, str):
        check(answer, content["application/json"]["schema"], document)
    elif "application/x-ndjson" in content:
        for line in answer.splitlines():
            check(json.loads(line), content["application/x-ndjson"]["itemSchema"], document)
    elif "text/event-stream" in content:
        schema = content["text/event-stream"]["schema"]["properties"]["data"]
        schema = schema.get("anyOf", [schema])[0]["contentSchema"]
        sent = [line for line in answer.splitlines() if line.startswith("data: {")]
        assert sent
        for line in sent:
            check(json.loads(line.removeprefix("data: ")), schema, document)


def check(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    """`value` is valid against a schema of the document."""
    whole = schema | {"components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)
