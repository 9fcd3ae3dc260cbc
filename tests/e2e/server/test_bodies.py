"""Bodies of requests that are no JSON, or too much of it."""

from __future__ import annotations

import http.client
import json
import re

import pytest

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
    body = QUESTION | {"model": "demo", "stream": False, "options": {"num_predict": 2}}
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
    status, answer = server.post(path, body | {"max_tokens": 2})
    assert status == 400
    message = answer["error"]["message"]
    assert "maximum context length is 8192 tokens" in message or "prompt is too long" in message
    assert "about" in message


def test_only_so_much_is_counted(server: Server):
    status, answer = server.post("/tokenize", {"content": "word " * 2_000_000})
    assert status == 400
    assert "131,072 are counted at most" in answer["error"]["message"]
