"""Requests in the manner of Open WebUI, which sends more than OpenAI's API knows.

The files in open_webui/ are such requests, written by hand.
"""

import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.serving import CHAT, Server

FOLDER = Path(__file__).parent / "open_webui"
HEADERS = {
    "Authorization": "Bearer sk-none",
    "X-OpenWebUI-User-Name": "Ada",
    "X-OpenWebUI-Chat-Id": "7d1c",
}


def send(server: Server, name: str) -> httpx.Response:
    body = (FOLDER / f"{name}.json").read_bytes()
    headers = HEADERS | {"Content-Type": "application/json"}
    return httpx.post(server.url + CHAT, content=body, headers=headers, timeout=60)


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    """The chunks of a stream, read as Open WebUI does: line by line, "data: " before each."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def written(found: list[dict[str, Any]], field: str) -> str:
    deltas = [choice["delta"] for chunk in found for choice in chunk["choices"]]
    return "".join(delta.get(field) or "" for delta in deltas)


def test_the_models_are_found(server: Server):
    found = httpx.get(server.url + "/v1/models", headers=HEADERS).json()
    assert [model["id"] for model in found["data"]] == ["demo"]


def test_a_chat_streams_its_thinking_its_answer_and_its_usage(server: Server):
    found = chunks(send(server, "chat"))
    assert written(found, "reasoning_content") == "7+5+0=2,1; 3+8+1=2,1; 1"
    assert written(found, "content") == "122"
    assert found[-1]["usage"]["total_tokens"] > 40


def test_an_image_after_the_text_is_seen(server: Server):
    assert written(chunks(send(server, "image")), "content") == "A red circle."


def test_a_title_is_made_without_a_stream(server: Server):
    answer = send(server, "title")
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(
    "name",
    ["second_turn", "continue_response", "chat_with_parameters", "native_tools", "tool_result"],
)
def test_whatever_is_sent_with_it_is_taken(server: Server, name: str):
    found = chunks(send(server, name))
    [*_, last] = [chunk for chunk in found if chunk["choices"]]
    assert last["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")
