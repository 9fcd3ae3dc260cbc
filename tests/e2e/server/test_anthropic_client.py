"""Messages, asked with Anthropic's own client."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from magistral_mlx.demo.cases import make_case
from magistral_mlx.server.errors import Busy
from tests.serving import Server

SUM: list[Any] = [{"role": "user", "content": "What is 37 + 85?"}]
THOUGHT, ANSWER = "7+5+0=2,1; 3+8+1=2,1; 1", "122"
THINK = {"type": "enabled", "budget_tokens": 1024}
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: anthropic.Anthropic, messages: Any = SUM, **options: Any) -> Any:
    options = {"max_tokens": 200, "thinking": THINK, "extra_body": GREEDY} | options
    return client.messages.create(model="demo", messages=messages, **options)


def test_a_question_is_answered_in_blocks(client: anthropic.Anthropic):
    message = ask(client)
    thinking, text = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", THOUGHT) and thinking.signature
    assert (text.type, text.text) == ("text", ANSWER)
    assert (message.role, message.model, message.stop_reason) == ("assistant", "demo", "end_turn")
    usage = message.usage
    read = usage.input_tokens + usage.cache_read_input_tokens
    counted = client.messages.count_tokens(model="demo", messages=SUM, thinking=THINK)  # type: ignore[arg-type]
    assert read == counted.input_tokens
    assert 0 < usage.output_tokens_details.thinking_tokens < usage.output_tokens


def test_a_stream_brings_the_same_in_pieces(client: anthropic.Anthropic):
    with client.messages.stream(
        model="demo",
        max_tokens=200,
        messages=SUM,
        thinking=THINK,  # type: ignore[arg-type]
        extra_body=GREEDY,
    ) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 2
    assert kinds.count("thinking") > 5 and kinds.count("text") == 3 and "signature" in kinds
    assert [block.to_dict() for block in message.content] == [
        block.to_dict() for block in ask(client).content
    ]
    assert message.stop_reason == "end_turn" and message.usage.output_tokens > 10


def test_without_a_word_about_it_the_model_does_not_think(client: anthropic.Anthropic):
    for thinking in ({"type": "disabled"}, anthropic.NOT_GIVEN):
        message = ask(client, thinking=thinking)
        assert all(block.type == "text" for block in message.content)
    adaptive = ask(client, thinking={"type": "adaptive"}, output_config={"effort": "low"})
    assert adaptive.content[0].type == "thinking"


def test_why_it_stopped_is_told(client: anthropic.Anthropic):
    cut = ask(client, max_tokens=5)
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 5
    stopped = ask(client, stop_sequences=["x", "22"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "22")
    assert stopped.content[-1].text == "1"


def test_an_image_is_seen(client: anthropic.Anthropic):
    case = make_case("one_image", 1_000_000_000)
    data = io.BytesIO()
    case.images[0].save(data, "PNG")
    source = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(data.getvalue()).decode(),
    }
    content = [{"type": "image", "source": source}, {"type": "text", "text": case.question}]
    message = ask(client, [{"role": "user", "content": content}])
    assert message.content[-1].text == case.answer


def test_an_image_that_a_tool_returned_is_seen(client: anthropic.Anthropic):
    case = make_case("one_image", 1_000_000_000)
    data = io.BytesIO()
    case.images[0].save(data, "PNG")
    source = {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(data.getvalue()).decode(),
    }
    use = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
    shown = {"type": "image", "source": source}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [shown]}
    turns = [
        *SUM,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    with_image = client.messages.count_tokens(model="demo", messages=turns)  # type: ignore[arg-type]
    result["content"] = "(see the image)"
    without = client.messages.count_tokens(model="demo", messages=turns)  # type: ignore[arg-type]
    assert with_image.input_tokens > without.input_tokens + 4
    assert ask(client, turns).stop_reason == "end_turn"


def test_earlier_turns_and_the_system_prompt_come_along(client: anthropic.Anthropic):
    def count(messages: Any, **options: Any) -> int:
        options = {"model": "demo", "messages": messages} | options
        return client.messages.count_tokens(**options).input_tokens

    thought = {"type": "thinking", "thinking": THOUGHT, "signature": "x"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    said = {"type": "text", "text": ANSWER, "cache_control": {"type": "ephemeral"}}
    turns = [*SUM, {"role": "assistant", "content": [said]}, {"role": "user", "content": "Sure?"}]
    plain = count(turns)
    turns[1] = {"role": "assistant", "content": [hidden, said]}
    assert count(turns) == plain
    turns[1] = {"role": "assistant", "content": [thought, said]}
    assert count(turns) > plain
    tools = [{"name": "add", "input_schema": {"type": "object", "properties": {}}}]
    assert count(turns, tools=tools) > count(turns)
    system = [{"type": "text", "text": "You add numbers."}]
    assert count(SUM, system="You add numbers.") == count(SUM, system=system)


def test_an_answer_keeps_to_a_schema(client: anthropic.Anthropic):
    schema = {
        "type": "object",
        "properties": {"sure": {"type": "boolean"}},
        "required": ["sure"],
        "additionalProperties": False,
    }
    form = {"format": {"type": "json_schema", "schema": schema}}
    text = ask(client, output_config=form, max_tokens=400).content[-1].text
    assert text.split() and "".join(text.split()) in ('{"sure":true}', '{"sure":false}')


def test_errors_are_those_of_the_client(
    client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch, server: Server
):
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nothing", max_tokens=5, messages=SUM)
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]\.text"):
        ask(client, [{"role": "user", "content": [{"type": "text"}]}])
    result = {"type": "tool_result", "tool_use_id": "a", "content": "b"}
    with pytest.raises(anthropic.BadRequestError, match="has no place in an assistant's message"):
        ask(client, [*SUM, {"role": "assistant", "content": [result]}])
    with pytest.raises(anthropic.BadRequestError, match="tools hold none"):
        ask(client, tool_choice={"type": "tool", "name": "a"})

    def full(*_: Any) -> Any:
        raise Busy("enough wait already.", 7)

    monkeypatch.setattr(server.service.queue, "admit", full)
    with pytest.raises(anthropic.RateLimitError) as busy:
        ask(client)
    assert busy.value.response.headers["retry-after"] == "7"


def test_a_long_prompt_is_answered_with_pings_before(client: anthropic.Anthropic, server: Server):
    body = {
        "messages": [{"role": "user", "content": "5 + 5 " * 300}],
        "max_tokens": 3,
        "stream": True,
    }
    _, text = server.post("/v1/messages", body)
    assert text.startswith("event: message_start\n")
    assert text.count('event: ping\ndata: {"type":"ping","progress":{"prompt_tokens":') > 1


def test_the_models_are_listed(client: anthropic.Anthropic):
    [model] = client.models.list().data
    assert (model.id, model.type) == ("demo", "model") and model.created_at.year > 2000
    assert client.models.retrieve("demo").display_name == "demo"


@pytest.mark.parametrize(
    "kind", ["web_search_20250305", "web_fetch_20250910", "code_execution_20250825", "mcp_toolset"]
)
def test_tools_that_the_vendor_runs_are_left_out(client: anthropic.Anthropic, kind: str):
    function: Any = {"name": "add", "input_schema": {"type": "object"}}
    hosted: Any = {"type": kind, "name": "hosted", "max_uses": 5}
    count = client.messages.count_tokens
    with_it = count(model="demo", messages=SUM, tools=[hosted, function])
    assert with_it == count(model="demo", messages=SUM, tools=[function])
    assert count(model="demo", messages=SUM, tools=[hosted]) == count(model="demo", messages=SUM)
    assert ask(client, tools=[hosted]).content == ask(client).content
    with pytest.raises(anthropic.BadRequestError, match="which this server does not run"):
        ask(client, tools=[hosted], tool_choice={"type": "tool", "name": "hosted"})


@pytest.mark.parametrize("kind", ["bash_20250124", "computer_20250124", "nonsense"])
def test_tools_that_clients_run_without_a_schema_are_refused(
    client: anthropic.Anthropic, kind: str
):
    with pytest.raises(anthropic.BadRequestError, match=f"'{kind}': only functions"):
        ask(client, tools=[{"type": kind, "name": "bash"}])


@pytest.mark.parametrize(
    "thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}, "t"]
)
def test_threads_are_refused_so_that_the_sdk_falls_back(client: anthropic.Anthropic, thread: Any):
    with pytest.raises(anthropic.BadRequestError) as refused:
        ask(client, extra_body={"thread": thread})
    error = refused.value.body["error"]  # type: ignore[index]
    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    assert error["type"] == "invalid_request_error" and error["details"] == details
    assert ask(client, extra_body={"thread": None}).content
