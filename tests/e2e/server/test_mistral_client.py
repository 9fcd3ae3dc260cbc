"""Mistral's dialect, spoken by Mistral's own client, and by others that send its fields."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mistralai.client import Mistral
from mistralai.client.errors import SDKError
from pydantic import BaseModel, Field

from magistral_mlx.server.settings import Settings
from tests.scripted import write_scripted_checkpoint
from tests.serving import CHAT, Server, live_server

SUM: list[Any] = [{"role": "user", "content": "What is 37 + 85?"}]
THOUGHT, ANSWER = "7+5+0=2,1; 3+8+1=2,1; 1", "122"
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
]
IMAGE = Path("examples/circle.png")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Mistral]:
    with Mistral(api_key="none", server_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that thinks, speaks and calls f, and answers its result."""
    folder = write_scripted_checkpoint(
        tmp_path_factory.mktemp("server") / "caller",
        ["[/INST]", "[THINK]", "hm", "[/THINK]", "Wa", "[TOOL_CALLS]"],
        ["[TOOL_CALLS]", "f", "[ARGS]", "{\n }", "</s>"],
        ["[/TOOL_RESULTS]", "Zero", "</s>"],
    )
    with live_server(Settings(models=(str(folder),))) as server:
        yield server


def thinking_of(content: Any) -> str:
    chunks = content if isinstance(content, list) else []
    return "".join(
        part.text for chunk in chunks if chunk.type == "thinking" for part in chunk.thinking
    )


def text_of(content: Any) -> str:
    chunks = content if isinstance(content, list) else [content or ""]
    return "".join(c if isinstance(c, str) else getattr(c, "text", "") for c in chunks)


def test_models_have_the_cards_that_the_client_reads(client: Mistral):
    [card] = client.models.list().data or ()
    assert (card.id, card.type) == ("demo", "base") and card.max_context_length == 8192  # type: ignore[union-attr]
    for each in (card, client.models.retrieve(model_id="demo")):
        able = each.capabilities  # type: ignore[union-attr]
        assert able.completion_chat and able.function_calling and able.vision and able.reasoning
        assert not able.completion_fim


def test_an_answer_has_its_thinking_as_chunks_and_goes_back_so(client: Mistral):
    said = client.chat.complete(model="demo", messages=SUM, temperature=0).choices[0]
    assert said.message and said.finish_reason == "stop"
    content = said.message.content
    assert (thinking_of(content), text_of(content)) == (THOUGHT, ANSWER)
    following = [*SUM, said.message, {"role": "user", "content": "And 2 + 2?"}]
    answer = client.chat.complete(model="demo", messages=following, temperature=0, max_tokens=9)
    assert answer.usage.prompt_tokens and answer.usage.prompt_tokens > 60


def test_a_stream_has_choices_in_each_chunk_and_usage_in_the_last(client: Mistral):
    chunks = [each.data for each in client.chat.stream(model="demo", messages=SUM, temperature=0)]
    deltas = [chunk.choices[0].delta.content for chunk in chunks]
    assert "".join(map(thinking_of, deltas)) == THOUGHT
    assert "".join(text_of(delta) for delta in deltas) == ANSWER
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens
    assert not any(chunk.usage for chunk in chunks[:-1])


def test_a_call_comes_whole_and_takes_its_result(caller: Server):
    with Mistral(api_key="none", server_url=caller.url) as client:
        [card] = client.models.list().data or ()
        fields: dict[str, Any] = {"model": card.id, "tools": TOOLS, "temperature": 0}
        chunks = [each.data for each in client.chat.stream(messages=SUM, **fields)]
        calls = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
        [call] = calls
        assert (call.function.name, call.function.arguments) == ("f", "{\n }")
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        whole = client.chat.complete(messages=SUM, **fields).choices[0]
        assert whole.message and whole.finish_reason == "tool_calls"
        [call] = whole.message.tool_calls or ()
        result = {"role": "tool", "tool_call_id": call.id, "name": "f", "content": "0"}
        answer = client.chat.complete(messages=[*SUM, whole.message, result], **fields)
    assert answer.choices[0].message and answer.choices[0].message.content == "Zero"


class Sum(BaseModel):
    sum: int = Field(ge=0, le=1998)


def test_a_schema_and_images_are_taken(client: Mistral):
    parsed = client.chat.parse(model="demo", messages=SUM, response_format=Sum, temperature=0)
    assert parsed.choices and isinstance(parsed.choices[0].message.parsed, Sum)  # type: ignore[union-attr]
    url = "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": url},
        {"type": "text", "text": "What is in the picture?"},
    ]
    asked: list[Any] = [{"role": "user", "content": parts}]
    shown = client.chat.complete(model="demo", messages=asked, temperature=0)
    assert shown.choices[0].message and "circle" in text_of(shown.choices[0].message.content)


@pytest.mark.parametrize("fields", [{"safe_prompt": True}, {"prompt_logprobs": True}])
def test_what_is_not_supported_is_refused_by_name(client: Mistral, fields: dict[str, Any]):
    with pytest.raises(SDKError, match=next(iter(fields))) as refused:
        client.chat.complete(model="demo", messages=SUM, **fields)
    assert refused.value.status_code == 400


def test_what_this_model_cannot_do_is_refused_in_a_sentence(client: Mistral):
    with pytest.raises(SDKError, match="fill in the middle") as refused:
        client.fim.complete(model="demo", prompt="def f(", suffix="return")
    assert refused.value.status_code == 404
    with pytest.raises(SDKError, match="keeps no agents"):
        client.agents.complete(agent_id="x", messages=SUM)


@pytest.mark.parametrize(
    ("fields", "headers", "chunked"),
    [
        ({"random_seed": 1}, {}, True),
        ({"safe_prompt": False}, {}, True),
        ({}, {"User_Agent": "@mistralai/mistralai 2.1"}, True),
        ({"reasoning_format": "separate", "random_seed": 1}, {}, False),
        ({"seed": 1, "prediction": {"type": "content", "content": "1"}}, {}, False),
    ],
)
def test_the_dialect_goes_by_what_is_sent(
    server: Server, fields: dict[str, Any], headers: dict[str, str], chunked: bool
):
    status, body = server.ask(SUM[0]["content"], headers, **fields)
    content = body["choices"][0]["message"]["content"]
    assert status == 200 and isinstance(content, list) == chunked


def test_thinking_handed_back_as_chunks_is_answered_in_chunks(server: Server):
    chunks = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "122"}]
    messages = [*SUM, {"role": "assistant", "content": chunks}, *SUM]
    _, body = server.post(CHAT, {"messages": messages, "temperature": 0, "max_tokens": 40})
    content = body["choices"][0]["message"]["content"]
    assert [part["type"] for part in content][:1] == ["thinking"]


def test_a_client_that_cannot_join_calls_gets_them_whole(caller: Server):
    """langchain-mistralai, by the headers that it sends."""
    import httpx2 as httpx

    headers = {"User-Agent": "python-httpx/0.28.1", "Accept": "text/event-stream"}
    body = {"messages": SUM, "tools": TOOLS, "stream": True, "temperature": 0}
    for store, pieces in (("no-store", 1), ("no-cache", 3)):
        answer = httpx.post(
            caller.url + CHAT, json=body, headers=headers | {"Cache-Control": store}
        )
        lines = [json.loads(line[6:]) for line in answer.text.splitlines() if "{" in line]
        calls = [c for line in lines for c in line["choices"][0]["delta"].get("tool_calls", ())]
        assert len(calls) == pieces and "".join(c["function"]["arguments"] for c in calls)
