"""Fetching images from the web, with a web that stands on this machine."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import PIL.Image
import pytest

from magistral_mlx.errors import ImageError
from magistral_mlx.server import image_fetching
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.image_fetching import fetch_image, is_public
from magistral_mlx.server.settings import Limits, Settings
from tests.serving import CHAT, live_server, wait_until

ALLOWED = Settings(allow_remote_images=True)


def image() -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (28, 28), "red").save(file, "PNG")
    return file.getvalue()


class Web(ThreadingHTTPServer):
    """Answers each path with a status, headers and a body; counts what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Page)
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[str] = []
        self.hosts: list[str | None] = []
        self.stuck = threading.Event()

    def url(self, path: str, host: str = "images.example") -> str:
        return f"http://{host}:{self.server_port}{path}"


class _Page(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.hosts.append(self.headers["Host"])
        if self.path == "/stuck":
            self.server.stuck.wait(60)
            return
        status, headers, body = self.server.pages[self.path]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """images.example leads to a server on 127.0.0.1, which passes for public."""
    with Web() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setattr(socket, "getaddrinfo", names({"images.example": "127.0.0.1"}))
        monkeypatch.setattr(
            image_fetching,
            "is_public",
            lambda address: address == "127.0.0.1" or is_public(address),
        )
        yield running
        running.stuck.set()
        running.shutdown()
        thread.join()


def names(known: dict[str, str]) -> Callable[..., list[tuple[object, ...]]]:
    """A `getaddrinfo` that knows these names, and addresses."""

    def getaddrinfo(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (known.get(host, host), port))]

    return getaddrinfo


def fetch(url: str, settings: Settings = ALLOWED) -> bytes:
    return asyncio.run(fetch_image(url, settings))


def test_nothing_is_fetched_unless_that_was_allowed(web: Web):
    with pytest.raises(ImageError, match="--allow-remote-images"):
        fetch(web.url("/cat.png"), Settings())
    assert web.asked == []


def test_the_bytes_come_and_the_host_is_named(web: Web):
    web.pages["/a%20cat.png?size=1"] = (200, {}, image())
    assert fetch(web.url("/a cat.png?size=1")) == image()
    assert web.hosts == [f"images.example:{web.server_port}"]


def test_a_redirect_is_followed(web: Web):
    web.pages["/old"] = (302, {"Location": "/new"}, b"")
    web.pages["/new"] = (200, {}, image())
    assert fetch(web.url("/old")) == image()


def test_a_circle_of_redirects_ends(web: Web):
    web.pages["/round"] = (302, {"Location": "/round"}, b"")
    with pytest.raises(ImageError, match="more than 3 redirects"):
        fetch(web.url("/round"))


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2/", "http://[::1]/", "http://169.254.169.254/latest/meta-data"]
)
def test_a_redirect_to_a_private_address_is_not_followed(web: Web, target: str):
    web.pages["/trap"] = (302, {"Location": target}, b"")
    with pytest.raises(ImageError, match="not a public address"):
        fetch(web.url("/trap"))


def test_a_redirect_to_no_address_is_told(web: Web):
    web.pages["/trap"] = (302, {"Location": "http://[x"}, b"")
    with pytest.raises(ImageError, match="image_url is redirected to what is no URL"):
        fetch(web.url("/trap"))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://images.example/x", "gopher://x"])
def test_a_redirect_to_another_protocol_is_not_followed(web: Web, target: str):
    web.pages["/trap"] = (302, {"Location": target}, b"")
    with pytest.raises(ImageError, match="http:// or https://"):
        fetch(web.url("/trap"))


def test_the_address_that_was_checked_is_connected_to_whatever_the_name_says_later(
    web: Web, monkeypatch: pytest.MonkeyPatch
):
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])

    def rebinding(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        address = host if host.startswith("127.") else next(answers)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    web.pages["/cat.png"] = (200, {}, image())
    assert fetch(web.url("/cat.png")) == image()
    with pytest.raises(ImageError, match="not a public address"):
        fetch(web.url("/cat.png"))


def test_a_name_with_a_private_address_among_public_ones_is_refused(
    web: Web, monkeypatch: pytest.MonkeyPatch
):
    def both(host: str, port: int, *_: object, **__: object) -> list[tuple[object, ...]]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.1", "10.0.0.1")
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    with pytest.raises(ImageError, match="not a public address"):
        fetch(web.url("/cat.png"))
    assert web.asked == []


def test_an_image_that_is_too_large_is_cut_off(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_fetching, "_MOST_BYTES", 1 << 20)
    web.pages["/large"] = (200, {}, bytes(2 << 20))
    with pytest.raises(ImageError, match="more than 1 MiB"):
        fetch(web.url("/large"))


def test_a_server_that_keeps_silent_is_given_up(web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_fetching, "_SECONDS", 0.1)
    with pytest.raises(ImageError, match="did not arrive within"):
        fetch(web.url("/stuck"))


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ((404, {}, b""), "answers 404"),
        ((200, {"Content-Length": "99"}, b"short"), "cannot be fetched"),
        ((200, {"Content-Encoding": "gzip"}, b""), "compressed"),
    ],
)
def test_what_else_goes_wrong_is_said(
    web: Web, page: tuple[int, dict[str, str], bytes], problem: str
):
    web.pages["/cat.png"] = page
    with pytest.raises(ImageError, match=f"image_url.*{problem}"):
        fetch(web.url("/cat.png"))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@images.example/",
        "http:///x",
        "http://images.example:99999/",
        "http://[::1/",
    ],
)
def test_addresses_that_make_no_sense_are_refused(url: str):
    with pytest.raises(ImageError, match="image_url") as caught:
        fetch(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "::",
        "::1",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:192.168.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:7f00:1::",
        "2001:db8::1",
        "::7f00:1",
        "::a00:1",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::7f00:1",
        "fec0::1",
        "5f00::1",
        "192.88.99.1",
        "::ffff:192.88.99.1",
    ],
)
def test_no_form_of_a_private_address_passes_for_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111"])
def test_public_addresses_do(address: str):
    assert is_public(address)


def test_the_model_sees_an_image_from_the_web(web: Web):
    web.pages["/red.png"] = (200, {}, image())
    settings = Settings(models=("demo",), allow_remote_images=True)
    content = [
        {"type": "image_url", "image_url": {"url": web.url("/red.png")}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    with live_server(settings) as running:
        status, body = running.post(CHAT, {"messages": [{"role": "user", "content": content}]})
    assert status == 200
    assert body["choices"][0]["message"]["content"]
    assert web.asked == ["/red.png"]


@pytest.mark.parametrize("path", [CHAT, "/v1/messages/count_tokens"])
def test_what_is_fetched_counts_as_waiting_and_ends_with_its_client(
    web: Web, monkeypatch: pytest.MonkeyPatch, path: str
):
    ended = threading.Event()

    async def stuck(url: str, *_: object, **__: object) -> bytes:
        web.asked.append(url)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(image_fetching, "fetch_image", stuck)
    source = {"type": "url", "url": web.url("/stuck")}
    part = (
        {"type": "image_url", "image_url": {"url": source["url"]}}
        if path == CHAT
        else {"type": "image", "source": source}
    )
    body = {"model": "demo", "messages": [{"role": "user", "content": [part]}]}
    settings = Settings(models=("demo",), allow_remote_images=True, limits=Limits(queue=1))
    with live_server(settings) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        wait_until(lambda: len(web.asked) == 1)
        assert running.ask("Hello")[0] == 429
        connection.close()
        wait_until(ended.is_set)
        wait_until(lambda: running.ask("Hello", max_tokens=1)[0] == 200)


def test_images_of_one_request_are_bounded_by_their_bytes_together(web: Web):
    web.pages["/red.png"] = (200, {}, image())
    part = {"type": "image_url", "image_url": {"url": web.url("/red.png")}}
    limits = Limits(body_bytes=len(image()) * 3 // 2)
    fetching = image_fetching.ImageFetcher(Settings(allow_remote_images=True, limits=limits))
    one = asyncio.run(fetching.fetch_all([{"role": "user", "content": [part]}]))
    fetched = {"type": "image", "image": image(), "where": "messages[0].content[0].image_url"}
    assert one == [{"role": "user", "content": [fetched]}]
    with pytest.raises(BadRequest, match="--max-body"):
        asyncio.run(fetching.fetch_all([{"role": "user", "content": [part, part]}]))
