"""POST /v1/documents: a file as the parts of a message, as the page attaches it."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.pdf_files import pdf_of
from tests.serving import CHAT, Server
from tests.unit.test_documents import ENCRYPTED, png


def read(server: Server, name: str, data: bytes, **fields: Any) -> tuple[int, Any]:
    body = {"name": name, "data": base64.b64encode(data).decode()} | fields
    return server.post("/v1/documents", body)


def test_parts_are_sent_on_and_take_the_tokens_that_were_told(server: Server):
    parts: list[Any] = []
    told = 0
    for name, data, mode in (
        ("sum.py", b"total = 37 + 85\n", "text"),
        ("report.pdf", pdf_of(["Revenue grew.", "It ends."]), "text"),
        ("scan.pdf", pdf_of(["Revenue grew."]), "images"),
        ("red.png", png(), "text"),
    ):
        status, document = read(server, name, data, pdf=mode, image_tokens=20)
        assert status == 200, document
        parts += document["parts"]
        told += document["tokens"]
    kinds = [part["type"] for part in parts]
    assert kinds == ["text", "text", "text", "image_url", "image_url"]
    assert parts[1]["text"].startswith("File: report.pdf (2 pages)\n```\n[page 1]\nRevenue grew.")
    body = {"max_tokens": 1, "image_tokens": 20, "messages": [{"role": "user", "content": "."}]}
    bare = server.post(CHAT, body)[1]["usage"]["prompt_tokens"] - 1
    body["messages"] = [{"role": "user", "content": parts}]
    status, answer = server.post(CHAT, body)
    assert status == 200, answer
    assert abs(answer["usage"]["prompt_tokens"] - bare - told) <= 6  # blank lines in between


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.pdf", ENCRYPTED.read_bytes(), "a.pdf is encrypted."),
        ("a.pdf", pdf_of(["a"])[:300], "a.pdf is damaged or cut short."),
        ("a.bin", bytes(99), "a.bin is a binary file."),
        ("a.png", png()[:60], "a.png is damaged or cut short"),
        ("a.pdf", pdf_of([""]), "a.pdf has no text: it may be a scan."),
    ],
)
def test_what_cannot_be_read_is_refused(server: Server, name: str, data: bytes, words: str):
    status, answer = read(server, name, data)
    assert status == 400
    assert answer["error"]["message"].startswith(words)


def test_a_body_that_is_wrong_is_refused(server: Server):
    assert server.post("/v1/documents", {"name": "a.txt", "data": "*"})[0] == 400
    assert server.post("/v1/documents", {"name": "", "data": "YQ=="})[0] == 400
    assert read(server, "a.txt", b"a", pdf="pages")[0] == 400
    assert read(server, "a.txt", b"a", model="none")[0] == 404
    status, answer = read(server, "a.pdf", pdf_of(["a"] * 40, size=(9, 900)), pdf="images")
    assert (status, answer["error"]["message"][:31]) == (400, "the request holds 40 images, an")
