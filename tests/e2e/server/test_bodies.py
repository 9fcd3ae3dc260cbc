"""Bodies of requests that are no JSON, or too much of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from typing import Any

import pytest

from magistral_mlx.cli.params import parse_size
from magistral_mlx.server.bodies import BodyLimit
from tests.serving import CHAT, Server

QUESTION = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "max_tokens": 2}


def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(server: Server):
    for body in (b'{"messages":[' + b"{}," * 1_000_000 + b"{}]}", b"[" * 1_000_000):
        status, answer = server.post(CHAT, body)
        assert status == 400
        assert answer["error"]["message"] == (
            "the body holds more than 500,000 values. Send fewer."
        )
    assert server.get("/health")[0] == 200


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b'{"messages": [}', r"line 1, column 15"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"messages": "\xff"}', "byte 14 is not UTF-8"),
        (b'{"seed": ' + b"9" * 5_000 + b"}", "can be read"),
    ],
    ids=["syntax", "depth", "text", "digits"],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/completions"])
def test_what_is_no_json_gets_one_kind_of_error(server: Server, path: str, body: bytes, told: str):
    status, answer = server.post(path, body)
    assert (status, answer["error"]["code"]) == (400, "invalid_json")
    assert re.search(told, answer["error"]["message"])


def test_anthropics_clients_get_it_in_their_shape(server: Server):
    status, answer = server.post("/v1/messages", b"{")
    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert "not JSON" in answer["error"]["message"]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "", None])
@pytest.mark.parametrize("path", ["/api/chat", CHAT, "/v1/messages"])
def test_json_need_not_be_marked_where_no_browser_sends_it(
    server: Server, path: str, kind: str | None
):
    """As with `curl -d`."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = QUESTION | {"model": "demo", "stream": False}
    if path == "/api/chat":
        body["options"] = {"num_predict": body.pop("max_tokens")}
    headers = {} if kind is None else {"Content-Type": kind}
    connection.request("POST", path, json.dumps(body), headers)
    assert connection.getresponse().status == 200
    connection.close()


def test_a_form_that_is_no_json_is_told_apart(server: Server):
    kind = "application/x-www-form-urlencoded"
    status, answer = server.post(CHAT, b"model=demo&prompt=Hi", Content_Type=kind)
    assert (status, answer["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=a", "application/xml"])
def test_a_body_of_another_type_is_told_how_to_be_marked(server: Server, kind: str):
    status, answer = server.post(CHAT, QUESTION, Content_Type=kind)
    assert status == 400
    assert '"Content-Type: application/json"' in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "kind"),
    [(CHAT, "web_search"), ("/v1/messages", "bash_20250124")],
)
def test_a_tool_that_the_server_would_run_is_told_from_a_function(
    server: Server, path: str, kind: str
):
    asked = QUESTION | {"input": "What is 3 + 4?", "tools": [{"type": kind, "name": "it"}]}
    status, answer = server.post(path, asked)
    assert status == 400
    assert "only functions are supported" in answer["error"]["message"]
    assert f"tools[0]: this server runs no tools of its own, such as '{kind}'" in str(answer)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages", "/v1/responses"])
def test_a_text_that_no_context_holds_is_refused_by_its_length(server: Server, path: str):
    text = "word " * 1_000_000
    body = {"messages": [{"role": "user", "content": text}], "input": text}
    if path == "/v1/completions":
        body = {"prompt": text}
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    status, answer = server.post(path, body | {limit: 2})
    assert status == 400
    message = answer["error"]["message"]
    assert "maximum context length is 8192 tokens" in message or "prompt is too long" in message
    assert "about" in message


def test_only_so_much_is_counted(server: Server):
    status, answer = server.post("/tokenize", {"content": "word " * 2_000_000})
    assert status == 400
    assert "131,072 are counted at most" in answer["error"]["message"]


BROKEN = "data:image/png;base64,AAAA"
HI = {"role": "user", "content": "Hi"}


def _user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}


def _anthropic(source: dict[str, str]) -> dict[str, Any]:
    return {"type": "image", "source": source}


DATA = _anthropic({"type": "base64", "media_type": "image/png", "data": "AAAA"})
CHAT_IMAGE = {"type": "image_url", "image_url": {"url": BROKEN}}
CALL = {"id": "a", "function": {"name": "f", "arguments": "{}"}}
USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
INPUT_IMAGE = {"type": "input_image", "image_url": BROKEN}
OUTPUT = {"type": "function_call_output", "call_id": "a", "output": [INPUT_IMAGE]}


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        (CHAT, {"messages": [HI, _user(CHAT_IMAGE)]}, "messages[1].content[1].image_url.url"),
        (
            CHAT,
            {"messages": [_user({"type": "image_url", "image_url": BROKEN})]},
            "messages[0].content[1].image_url",
        ),
        (
            CHAT,
            {
                "messages": [
                    HI,
                    {"role": "assistant", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "a", "content": [CHAT_IMAGE]},
                ]
            },
            "messages[2].content[0].image_url.url",
        ),
        (
            "/v1/messages",
            {"system": "Be brief.", "messages": [_user(DATA)]},
            "messages[0].content[1].source.data",
        ),
        (
            "/v1/messages",
            {"messages": [_user(_anthropic({"type": "url", "url": "https://a.example"}))]},
            "messages[0].content[1].source.url",
        ),
        (
            "/v1/messages/count_tokens",
            {
                "messages": [
                    HI,
                    {"role": "assistant", "content": [USE]},
                    _user({"type": "tool_result", "tool_use_id": "a", "content": [DATA]}),
                ]
            },
            "messages[2].content[1].content[0].source.data",
        ),
        (
            "/v1/messages",
            {
                "messages": [
                    _user({"type": "document", "source": {"type": "content", "content": [DATA]}})
                ]
            },
            "messages[0].content[1].source.content[0].source.data",
        ),
        (
            "/v1/responses",
            {"instructions": "Be brief.", "input": [{"role": "user", "content": [INPUT_IMAGE]}]},
            "input[0].content[0].image_url",
        ),
        ("/v1/responses/input_tokens", {"input": [HI, OUTPUT]}, "input[1].output[0].image_url"),
        ("/api/chat", {"messages": [HI, HI | {"images": ["AAAA"]}]}, "messages[1].images[0]"),
        ("/api/generate", {"prompt": "?", "images": ["AAAA"]}, "images[0]"),
    ],
)
def test_a_broken_image_is_named_by_its_clients_field(
    server: Server, path: str, body: dict[str, Any], where: str
):
    status, answer = server.post(path, {"model": "demo"} | body)
    error = answer["error"]
    message = error if isinstance(error, str) else error["message"]
    assert status == 400
    assert re.match(re.escape(where) + r"(: | is a web address)", message)
    if "param" in error:
        assert error["param"] == where


def test_an_image_of_a_stored_conversation_is_told_from_the_input(server: Server):
    items = [HI | {"content": [INPUT_IMAGE]}]
    stored = server.post("/v1/conversations", {"items": items})[1]["id"]
    body = {"conversation": stored, "input": "?", "instructions": "Be brief."}
    error = server.post("/v1/responses", body)[1]["error"]
    assert error["param"] == "conversation.items[0].content[0].image_url"


def test_an_image_for_the_system_prompt_is_refused_by_its_place(server: Server):
    item = {"role": "developer", "content": [INPUT_IMAGE]}
    error = server.post("/v1/responses", {"instructions": "a", "input": [item, HI]})[1]["error"]
    assert error["param"] == "input[0].content" and "user's message" in error["message"]


@pytest.mark.parametrize(
    ("path", "part", "where"),
    [
        (CHAT, {"type": "file", "file": {"file_data": "%"}}, "file.file_data"),
        (CHAT, {"type": "document_url", "document_url": "data:,%"}, "document_url"),
        ("/v1/responses", {"type": "input_file", "file_data": "https://a"}, "file_data"),
    ],
)
def test_so_is_a_broken_file(server: Server, path: str, part: dict[str, Any], where: str):
    name = "messages" if path == CHAT else "input"
    error = server.post(path, {name: [HI, HI | {"content": [part]}]})[1]["error"]
    assert error["param"] == f"{name}[1].content[0].{where}"


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("10KB", "10 KB"),
        ("64MiB", "64 MiB"),
        ("1.5MB", "1,500 KB"),
        ("1GiB", "1 GiB"),
        ("1", "1 byte"),
        ("12345", "12,345 bytes"),
    ],
)
def test_the_largest_body_is_told_in_the_unit_that_was_given(limit: str, told: str):
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def never(*_: Any) -> Any:
        raise AssertionError

    headers = [(b"content-length", b"9999999999")]
    scope = {"type": "http", "path": "/v1/chat/completions", "headers": headers}
    asyncio.run(BodyLimit(never, parse_size(limit))(scope, never, send))
    assert sent[0]["status"] == 413
    assert f"the request has more than {told}. Send" in sent[1]["body"].decode()
