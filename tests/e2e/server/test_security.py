"""Who and what a server lets in, as its clients and other people's web pages meet it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import socket
from collections.abc import Iterator

import PIL.Image
import pytest

from magistral_mlx.errors import InvalidOption
from magistral_mlx.server.preprocessing import Preprocessor
from magistral_mlx.server.settings import Limits, Settings
from tests.serving import CHAT, Server, live_server, wait_until

KEY = "correct horse battery staple"
QUESTION = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def locked() -> Iterator[Server]:
    """A server with everything that can be switched on."""
    settings = Settings(
        models=("demo",),
        api_key=KEY,
        allowed_hosts=("my-mac.local",),
        cors_origins=("https://chat.example",),
        limits=Limits(body_bytes=200_000, images=2, tokens=3),
    )
    with live_server(settings) as running:
        yield running


def bearer(key: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def raw(server: Server, *lines: str) -> tuple[int, str]:
    """Send these lines as the head of a request that is otherwise empty."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        response = http.client.HTTPResponse(connection, method=lines[0].split()[0])
        response.begin()
        return response.status, response.read().decode()


def image_url(size: tuple[int, int]) -> str:
    file = io.BytesIO()
    PIL.Image.new("L", size).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def with_images(*urls: str) -> dict[str, object]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}]}


class TestKey:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "my-mac.local"])
    def test_a_host_that_others_can_reach_needs_a_key(self, host: str):
        with pytest.raises(InvalidOption, match=r"needs an API key.*--api-key"):
            Settings(host=host)
        assert Settings(host=host, api_key=KEY).host == host

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.2"])
    def test_a_host_of_this_machine_alone_needs_none(self, host: str):
        assert Settings(host=host).api_key is None

    @pytest.mark.parametrize("key", ["", " ", " key", "key\n", "schlüssel"])
    def test_a_key_that_no_header_could_carry_is_refused(self, key: str):
        with pytest.raises(InvalidOption, match="ASCII"):
            Settings(api_key=key)

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("POST", CHAT),
            ("POST", "/v1/messages"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/no/such/thing"),
            ("POST", "/health"),
        ],
    )
    def test_everything_that_tells_or_costs_something_needs_the_key(
        self, locked: Server, method: str, path: str
    ):
        status, body = locked.request(method, path, None)
        assert status == 401
        assert "Authorization: Bearer" in body["error"]["message"]

    @pytest.mark.parametrize("path", ["/", "/health", "/ready", "/openapi.json"])
    def test_the_page_the_document_and_the_probes_need_none(self, locked: Server, path: str):
        assert locked.get(path)[0] == 200

    @pytest.mark.parametrize("path", ["/", "/health", "/ready"])
    def test_nor_do_probes_that_read_no_body(self, locked: Server, path: str):
        assert raw(locked, f"HEAD {path} HTTP/1.1", "Host: localhost")[0] == 200

    @pytest.mark.parametrize(
        "headers",
        [
            bearer(),
            {"authorization": f"bearer {KEY}"},
            {"x-api-key": KEY},
            {"x-api-key": KEY, "Authorization": "Bearer placeholder"},
        ],
    )
    def test_the_key_is_taken_as_both_clients_send_it(
        self, locked: Server, headers: dict[str, str]
    ):
        assert locked.get("/v1/models", **headers)[0] == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            bearer(""),
            bearer(KEY[:-1]),
            bearer(KEY + "x"),
            bearer(KEY.upper()),
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
            {"x-api-key": ""},
        ],
    )
    def test_any_other_key_is_refused(self, locked: Server, headers: dict[str, str]):
        status, body = locked.get("/v1/models", **headers)
        assert status == 401
        assert body["error"]["code"] == "invalid_api_key"

    def test_anthropics_endpoints_refuse_in_anthropics_shape(self, locked: Server):
        _, body = locked.post("/v1/messages", {})
        assert body["type"] == "error"
        assert body["error"]["type"] == "authentication_error"

    def test_the_key_is_in_no_error_and_no_settings_that_are_printed(self, locked: Server):
        assert KEY not in repr(locked.service.settings)
        assert KEY not in json.dumps(locked.get("/v1/models", **bearer(KEY + "x"))[1])


class TestHostAndOrigin:
    @pytest.mark.parametrize(
        "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]", "[::1]:8080", "my-mac.local:80"]
    )
    def test_the_names_of_this_machine_are_answered_for(self, locked: Server, host: str):
        assert raw(locked, "GET /health HTTP/1.1", f"Host: {host}")[0] == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil.example:8080",
            "localhost@evil.example",
            "evil.example@localhost",
            "192.168.1.2",
            "[::2]",
            "[::1",
            "localhost:port",
            "localhost/..",
            "",
        ],
    )
    def test_another_name_is_refused_as_in_dns_rebinding(self, locked: Server, host: str):
        status, body = raw(locked, "GET /health HTTP/1.1", f"Host: {host}")
        assert status in (400, 403)
        assert '"ok"' not in body

    def test_two_names_at_once_are_refused(self, locked: Server):
        lines = ("GET /health HTTP/1.1", "Host: localhost", "Host: evil.example")
        assert raw(locked, *lines)[0] in (400, 403)

    def test_a_server_on_all_addresses_answers_for_each_of_them_but_for_no_name(self):
        settings = Settings(models=("demo",), host="0.0.0.0", api_key=KEY)
        with live_server(settings) as everywhere:
            assert raw(everywhere, "GET /health HTTP/1.1", "Host: 192.168.1.2:8080")[0] == 200
            assert raw(everywhere, "GET /health HTTP/1.1", "Host: evil.example")[0] == 403

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "https://evil.example:443", "null", "http://localhost:1"]
    )
    def test_a_page_of_another_site_is_refused(self, server: Server, origin: str):
        status, body = server.post(CHAT, QUESTION, Origin=origin)
        assert status == 403
        assert "--cors" in body["error"]["message"]

    def test_a_form_that_another_site_posts_blindly_is_refused(self, server: Server):
        headers = {"Origin": "http://evil.example", "Content-Type": "text/plain"}
        assert server.post(CHAT, QUESTION, **headers)[0] == 403

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
    @pytest.mark.parametrize(
        "sign",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Referer": "http://evil.example/"},
            {"Origin": "https://chat.example"},
        ],
        ids=str,
    )
    def test_a_browser_has_to_mark_json_as_such(
        self, locked: Server, sign: dict[str, str], kind: str
    ):
        """A page may send the other types to any site, without being invited."""
        headers = bearer() | sign | {"Content-Type": kind}
        status, body = locked.post(CHAT, QUESTION, **headers)
        assert status == 400
        assert "not marked as JSON" in body["error"]["message"]
        assert locked.post(CHAT, QUESTION, **bearer(), **sign)[0] == 200

    def test_the_servers_own_page_may_ask(self, server: Server):
        assert server.post(CHAT, QUESTION, Origin=server.url)[0] == 200

    def test_no_page_is_invited_unless_it_was_named(self, server: Server):
        lines = ("OPTIONS /v1/models HTTP/1.1", "Host: localhost")
        asks = ("Origin: https://chat.example", "Access-Control-Request-Method: POST")
        assert raw(server, *lines, *asks)[0] == 403

    def test_a_page_that_was_named_is_invited_and_may_ask_with_the_key(self, locked: Server):
        connection = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=60)
        origin = {"Origin": "https://chat.example"}
        asks = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        connection.request("OPTIONS", CHAT, headers=origin | asks)
        invited = connection.getresponse()
        invited.read()
        assert invited.status == 200
        assert invited.headers["Access-Control-Allow-Origin"] == "https://chat.example"
        assert "authorization" in invited.headers["Access-Control-Allow-Headers"].lower()
        connection.request("GET", "/v1/models", headers=origin | bearer())
        answered = connection.getresponse()
        assert answered.status == 200
        assert answered.headers["Access-Control-Allow-Origin"] == "https://chat.example"
        assert answered.headers["Access-Control-Expose-Headers"] == "Retry-After"
        connection.close()


class TestLimits:
    def test_a_body_that_says_it_is_too_large_is_not_read(self, locked: Server):
        head = (f"POST {CHAT} HTTP/1.1", "Host: localhost", f"x-api-key: {KEY}")
        status, body = raw(locked, *head, "Content-Length: 900000000000")
        assert status == 413
        assert "--max-body" in json.loads(body)["error"]["message"]

    def test_a_body_that_hides_its_size_is_cut_off_while_it_comes(self, locked: Server):
        with socket.create_connection(("127.0.0.1", locked.port), timeout=60) as connection:
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nx-api-key: {KEY}\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            for _ in range(4):  # and it never ends
                connection.sendall(chunk)
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 413
            assert json.loads(response.read())["error"]["code"] == "request_too_large"

    def test_more_images_than_allowed_are_refused_before_they_are_opened(self, locked: Server):
        status, body = locked.post(CHAT, with_images(*["data:,no image"] * 3), **bearer())
        assert status == 400
        assert "3 images" in body["error"]["message"]
        assert "--max-images" in body["error"]["message"]

    @pytest.mark.slow
    def test_images_that_unfold_to_too_many_pixels_are_refused(self, server: Server):
        bomb = image_url((13_000, 13_000))
        assert len(bomb) < 300_000
        status, body = server.post(CHAT, with_images(bomb))
        assert status == 400
        assert "169 megapixels" in body["error"]["message"]
        large = image_url((7_000, 7_000))
        status, body = server.post(CHAT, with_images(*[large] * 3))
        assert status == 400
        assert "147 megapixels together" in body["error"]["message"]

    def test_an_answer_has_no_more_tokens_than_allowed(self, locked: Server):
        for wanted in (None, 2, 500):
            _, body = locked.ask("What is 37 + 85?", bearer(), max_tokens=wanted)
            assert body["usage"]["completion_tokens"] == min(wanted or 3, 3)

    def test_an_absurd_number_of_answers_is_refused(self, server: Server):
        status, body = server.ask("Hi", n=100_000)
        assert status == 400
        assert "128" in body["error"]["message"]


class TestImages:
    def test_web_addresses_are_refused_unless_allowed(self, server: Server):
        status, body = server.post(CHAT, with_images("https://example.com/cat.png"))
        assert status == 400
        assert "--allow-remote-images" in body["error"]["message"]

    @pytest.mark.parametrize(
        "url", ["/etc/hostname", "file:///etc/hostname", "etc/hostname", "file://[x/y", "//[x"]
    )
    def test_files_of_the_server_are_out_of_reach(self, server: Server, url: str):
        status, body = server.post(CHAT, with_images(url))
        assert status == 400
        assert "data URL" in body["error"]["message"]


class TestDamagedRequests:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            b"null",
            b'"text"',
            b'{"messages": ' + b"[" * 100_000,
            b'{"messages": "Hi"}',
            b'{"messages": []}',
            b'{"messages": [{"role": "king", "content": "Hi"}]}',
            b'{"messages": [{"role": "user", "content": {"a": 1}}]}',
            b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": "hot"}',
            b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
            b'{"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 0}',
            b'{"messages": [{"role": "user", "content": "Hi"}], "seed": ' + b"9" * 5000 + b"}",
        ],
    )
    def test_each_is_a_4xx_in_openais_shape(self, server: Server, body: bytes):
        status, answer = server.post(CHAT, body)
        assert 400 <= status < 500
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error"
        assert "Traceback" not in answer["error"]["message"]

    def test_the_field_that_is_wrong_is_named(self, server: Server):
        _, answer = server.ask("Hi", temperature="hot")
        assert answer["error"]["param"] == "temperature"
        assert "temperature" in answer["error"]["message"]

    def test_a_route_that_there_is_not_is_a_404_in_openais_shape(self, server: Server):
        status, answer = server.get("/v1/nothing")
        assert (status, answer["error"]["code"]) == (404, "not_found")

    def test_a_method_that_a_route_lacks_is_a_405_in_openais_shape(self, server: Server):
        status, answer = server.get(CHAT)
        assert (status, answer["error"]["type"]) == (405, "invalid_request_error")

    def test_a_fault_of_our_own_is_a_500_without_details(
        self, server: Server, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: object) -> None:
            raise ZeroDivisionError("a secret of the inside")

        monkeypatch.setattr(Preprocessor, "open_images", fail)
        status, answer = server.ask("Hi")
        assert status == 500
        assert answer["error"]["type"] == "server_error"
        assert "secret" not in json.dumps(answer)


class TestLog:
    def test_what_is_said_is_not_logged(self, server: Server, caplog: pytest.LogCaptureFixture):
        with caplog.at_level(logging.DEBUG, "magistral_mlx"):
            server.ask("What is 1234 + 4321?")
            wait_until(lambda: CHAT in caplog.text)
        assert "1234" not in caplog.text

    def test_it_is_where_that_was_asked_for(self, caplog: pytest.LogCaptureFixture):
        settings = Settings(models=("demo",), log_prompts=True)
        with live_server(settings) as talkative, caplog.at_level(logging.INFO, "magistral_mlx"):
            talkative.ask("What is 37 + 85?")
            wait_until(lambda: '"text": "122"' in caplog.text)
        assert "What is 37 + 85?" in caplog.text
