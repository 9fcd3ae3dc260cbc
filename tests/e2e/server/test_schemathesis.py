"""The server keeps to its OpenAPI document, whatever it is sent; see tests/fuzzing.py."""

from tests.fuzzing import SETTINGS, fuzz
from tests.serving import live_server


def test_nothing_that_is_sent_makes_the_server_fail():
    with live_server(SETTINGS) as server:
        seen = fuzz(server.url, cases=160)
    assert seen.total() >= 160
    statuses = {status for _, status in seen}
    assert {200, 400} <= statuses and max(statuses) < 500
    answered = {label for label, status in seen if status == 200}
    assert {"POST /v1/chat/completions", "POST /v1/responses", "POST /v1/messages"} <= answered
