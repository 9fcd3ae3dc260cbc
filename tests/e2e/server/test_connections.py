"""Connections of every kind of client: half-closed, slow, too many, packed, refused."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import logging
import resource
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from backports import zstd
from pydantic import BaseModel

from magistral_mlx.server import connections
from magistral_mlx.server.connections import OnceOutOfFiles, most_connections, raise_file_limit
from magistral_mlx.server.settings import Limits, Settings
from magistral_mlx.server.sse import json_text
from tests.serving import CHAT, Server, live_server

QUESTION = {"messages": [{"role": "user", "content": "What is 37 + 85?"}], "temperature": 0}
_MIB = 1 << 20


@contextmanager
def connected(server: Server) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        yield client


def request_of(body: bytes, path: str = CHAT, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def rest_of(client: socket.socket) -> bytes:
    """All that comes until the server closes."""
    found = b""
    while piece := client.recv(65536):
        found += piece
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_side_gets_its_answer(server: Server, stream: bool):
    with connected(server) as client:
        client.sendall(request_of(json.dumps(QUESTION | {"stream": stream}).encode()))
        client.shutdown(socket.SHUT_WR)
        answer = rest_of(client)
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"[DONE]" in body if stream else b'"content":"122"' in body


def is_closed(client: socket.socket) -> bool:
    """Whether the server closes the connection, or has."""
    client.settimeout(60)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # two processes of tests name their cases alike


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", zipped),
        ("GZIP", zipped),
        ("zstd", zstd.compress),
        ("gzip", lambda data: zipped(data[:9]) + zipped(data[9:])),
        ("zstd", lambda data: zstd.compress(data[:9]) + zstd.compress(data[9:])),
        ("identity", bytes),
    ],
)
def test_a_packed_body_is_taken(server: Server, encoding: str, pack: Callable[[bytes], bytes]):
    body = pack(json.dumps(QUESTION).encode())
    status, answer = server.post(CHAT, body, Content_Encoding=encoding)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "122"


@pytest.mark.parametrize(
    ("encoding", "body", "status", "told"),
    [
        ("br", b"x", 415, "Content-Encoding 'br' is not supported"),
        ("gzip, zstd", b"x", 415, "Content-Encoding 'gzip, zstd' is not supported"),
        ("gzip", b"no gzip", 400, "the body is no gzip, its Content-Encoding: it cannot be"),
        ("zstd", b"no zstd", 400, "the body is no zstd, its Content-Encoding: it cannot be"),
        ("gzip", zipped(b"{}")[:-4], 400, "it ends too early"),
        ("zstd", zstd.compress(b"{}")[:-2], 400, "it ends too early"),
        ("gzip", b"", 400, "it ends too early"),
    ],
)
def test_a_body_that_cannot_be_unpacked_is_told(
    server: Server, encoding: str, body: bytes, status: int, told: str
):
    code, answer = server.post(CHAT, body, Content_Encoding=encoding)
    assert code == status
    assert told in answer["error"]["message"]


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """Takes 1 MiB of body, and ten connections."""
    limits = Limits(body_bytes=_MIB)
    with live_server(Settings(models=("demo",), limits=limits), connections=10) as server:
        yield server


@pytest.mark.parametrize(
    "pack", [zipped, zstd.compress, lambda data: zlib.compress(data, wbits=31)]
)
def test_a_body_counts_unpacked(small: Server, pack: Callable[[bytes], bytes]):
    encoding = "zstd" if pack is zstd.compress else "gzip"
    body = pack(b" " * 50 * _MIB + json.dumps(QUESTION).encode())
    assert len(body) < _MIB
    status, answer = small.post(CHAT, body, Content_Encoding=encoding)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


def test_a_refusal_is_read_by_a_client_that_sends_all_first(small: Server):
    body = json.dumps(QUESTION | {"padding": "x" * 20 * _MIB}).encode()
    for path in (CHAT, "/v1/messages", "/api/chat"):
        status, answer = small.post(path, body)
        assert status == 413 and "more than 1 MiB" in str(answer)
    chunk = b"100000\r\n" + b" " * _MIB + b"\r\n"
    with connected(small) as client:
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode()
        )
        for _ in range(20):
            client.sendall(chunk)
        client.sendall(b"0\r\n\r\n")
        assert rest_of(client).startswith(b"HTTP/1.1 413")


def test_a_client_that_asks_first_need_not_send(small: Server):
    with connected(small) as client:
        head = request_of(b"", CHAT, "Expect: 100-continue", "Connection: close")
        client.sendall(head.replace(b"Content-Length: 0", b"Content-Length: 99999999"))
        assert rest_of(client).startswith(b"HTTP/1.1 413")


def test_idle_connections_make_room_and_are_told_of_once(
    small: Server, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, "magistral_mlx.server"):
        clients = [socket.create_connection(("127.0.0.1", small.port)) for _ in range(40)]
        try:
            for _ in range(3):
                assert small.get("/health")[0] == 200
            assert all(is_closed(client) for client in clients[:20])
        finally:
            for client in clients:
                client.close()
    told = [record for record in caplog.records if "connections are open" in record.message]
    assert len(told) == 1


def test_a_connection_must_bring_its_request(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "_HEADER_SECONDS", 0.1)
    monkeypatch.setattr(connections, "_BODY_SECONDS", 0.1)
    for sent in (b"", b"GET /health HT", request_of(b"{}")[:-1]):
        with connected(server) as client:
            client.sendall(sent)
            assert rest_of(client) == b""
    with connected(server) as client:  # one that has been of use before
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
        assert rest_of(client).startswith(b"HTTP/1.1 200")


def test_an_unfinished_upload_does_not_hold_up_the_end():
    settings = Settings(models=("demo",), grace=float("inf"))
    with live_server(settings) as server:
        client = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        client.sendall(request_of(b" " * 1000)[:-500])
        assert server.get("/health")[0] == 200
    with client:
        answer = rest_of(client)
    assert answer.startswith(b"HTTP/1.1 503") and b"shutting down" in answer


@pytest.mark.parametrize(
    ("limits", "asked", "allowed"),
    [
        ((256, resource.RLIM_INFINITY), 10_240, True),
        ((256, 4096), 4096, True),
        ((256, resource.RLIM_INFINITY), 256, False),
        ((1_000_000, 1_000_000), 1_000_000, True),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 10_240, True),
    ],
)
def test_the_limit_of_open_files_is_raised(
    limits: tuple[int, int], asked: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
):
    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        if not allowed:
            raise ValueError("not allowed to raise maximum limit")
        assert wanted == (asked, limits[1])

    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert raise_file_limit() == asked
    assert 8 <= most_connections(asked) < asked


def test_being_out_of_files_is_logged_once(caplog: pytest.LogCaptureFixture):
    loop, others = asyncio.new_event_loop(), []
    loop.default_exception_handler = others.append  # type: ignore[method-assign]
    handler = OnceOutOfFiles()
    for number in (errno.EMFILE, errno.EMFILE, errno.ENFILE):
        handler(loop, {"message": "accept", "exception": OSError(number, "Too many open files")})
    handler(loop, {"message": "other", "exception": ValueError()})
    loop.close()
    assert [record.message for record in caplog.records] == [
        f"no connection can be accepted: [Errno {errno.EMFILE}] Too many open files. Raise the "
        "limit of open files."
    ]
    assert [context["message"] for context in others] == ["other"]


class Piece(BaseModel):
    text: str


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085", "\n", "\r", "\x0b", "\x1e"])
def test_a_piece_of_a_stream_is_one_line_for_every_client(end: str):
    line = json_text(Piece(text=f"one{end}two"))
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": f"one{end}two"}


def test_pages_that_are_files_may_be_let_in():
    settings: dict[str, Any] = {"models": ("demo",), "cors_origins": ("file://",)}
    with live_server(Settings(**settings), ready=False) as server:
        assert server.get("/health", Origin="file://")[0] == 200
        assert server.get("/health", Origin="file:///etc")[0] == 403
