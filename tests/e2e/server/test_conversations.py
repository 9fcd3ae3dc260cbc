"""Conversations as agents and other clients send them, on every API that takes one."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from magistral_mlx.server.settings import Settings
from tests.scripted import write_scripted_checkpoint
from tests.serving import CHAT, Server, live_server

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SUM = "What is 37 + 85?"
Turn = tuple[str, Any]  # role and content


def chat(server: Server, turns: list[Turn], **fields: Any) -> tuple[int, Any]:
    messages = [{"role": role, "content": content} for role, content in turns]
    return server.post(CHAT, {"messages": messages, "max_tokens": 4, "temperature": 0} | fields)


def message(server: Server, turns: list[Turn], **fields: Any) -> tuple[int, Any]:
    roles = {"developer": "system"}
    messages = [{"role": roles.get(role, role), "content": content} for role, content in turns]
    return server.post(MESSAGES, {"messages": messages, "max_tokens": 4} | fields)


def response(server: Server, turns: list[Turn], **fields: Any) -> tuple[int, Any]:
    items = [{"role": role, "content": content} for role, content in turns]
    return server.post(RESPONSES, {"input": items, "max_output_tokens": 4} | fields)


APIS = pytest.mark.parametrize("ask", [chat, message, response])
Ask = Callable[..., tuple[int, Any]]


def prompt_tokens(body: Any) -> int:
    usage = body["usage"]
    if "prompt_tokens" in usage:
        return usage["prompt_tokens"]
    return usage["input_tokens"] + usage.get("cache_read_input_tokens", 0)


@APIS
@pytest.mark.parametrize(
    "turns",
    [
        [("user", SUM), ("system", "Skills: none.")],
        [("user", SUM), ("assistant", "122"), ("system", "Be brief."), ("user", "Sure?")],
        [("system", "x"), ("user", SUM), ("developer", "y"), ("assistant", "1"), ("user", "?")],
        [("user", SUM), ("developer", "a"), ("system", "b"), ("user", "c")],
    ],
)
def test_a_late_system_message_is_answered(server: Server, ask: Ask, turns: list[Turn]):
    status, body = ask(server, turns)
    assert status == 200, body
    without = [turn for n, turn in enumerate(turns) if not n or turn[0] in ("user", "assistant")]
    assert prompt_tokens(body) > prompt_tokens(ask(server, without)[1])


@APIS
@pytest.mark.parametrize("empty", ["", " ", []])
def test_an_empty_turn_of_the_model_is_left_out(server: Server, ask: Ask, empty: Any):
    joined = prompt_tokens(ask(server, [("user", SUM), ("user", "Sure?")])[1])
    status, body = ask(server, [("user", SUM), ("assistant", empty), ("user", "Sure?")])
    assert status == 200 and prompt_tokens(body) == joined
    status, body = ask(server, [("user", SUM), ("assistant", empty)])
    assert status == 200
    assert prompt_tokens(body) == prompt_tokens(ask(server, [("user", SUM)])[1])


@pytest.mark.parametrize(
    "turn",
    [
        {"content": None},
        {"content": None, "tool_calls": []},
        {"tool_calls": None},
        {"content": "", "reasoning_content": ""},
        {"content": [{"type": "thinking", "thinking": []}]},
        {"content": [{"type": "text", "text": ""}], "reasoning_content": " \n"},
    ],
)
def test_every_spelling_of_an_empty_turn_is_left_out(server: Server, turn: dict[str, Any]):
    question = {"role": "user", "content": SUM}
    more = {"role": "user", "content": "Sure?"}
    body = {"messages": [question, {"role": "assistant"} | turn, more], "max_tokens": 1}
    status, found = server.post(CHAT, body)
    assert status == 200, found
    joined = server.post(CHAT, {"messages": [question, more], "max_tokens": 1})[1]
    assert prompt_tokens(found) == prompt_tokens(joined)


@pytest.mark.parametrize(
    "thinking",
    [
        {"reasoning_content": ""},
        {"reasoning_content": "\n"},
        {"reasoning": " "},
        {"content": [{"type": "thinking", "thinking": ""}, {"type": "text", "text": "122"}]},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": " "}]},
                {"type": "text", "text": "122"},
            ]
        },
    ],
)
def test_blank_thinking_is_as_if_absent(server: Server, thinking: dict[str, Any]):
    def tokens(turn: dict[str, Any]) -> int:
        turns = [
            {"role": "user", "content": SUM},
            {"role": "assistant", "content": "122"} | turn,
            {"role": "user", "content": "Sure?"},
        ]
        return prompt_tokens(server.post(CHAT, {"messages": turns, "max_tokens": 1})[1])

    assert tokens(thinking) == tokens({})


def test_an_answer_that_was_nothing_but_thinking_can_be_sent_back_without_it(server: Server):
    """A client without reasoning keeps the empty content alone."""
    status, body = server.ask(SUM, max_tokens=3)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "")
    turns = [("user", SUM), ("assistant", ""), ("user", "Go on")]
    assert chat(server, turns)[0] == 200


# Calls that are cut short


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Calls f({ on on …) and never comes to the end of it."""
    folder = write_scripted_checkpoint(
        tmp_path_factory.mktemp("server") / "caller",
        ["[/INST]", "[TOOL_CALLS]", "f", "[ARGS]", "{", " on", " on"],
    )
    with live_server(Settings(models=(str(folder),))) as server:
        yield server


PARAMETERS = {"type": "object", "properties": {"a": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_cut_call_is_the_same_whole_and_streamed(caller: Server, limit: int):
    fields = {"tools": [TOOL], "max_tokens": limit}
    [choice] = caller.ask("Go", **fields)[1]["choices"]
    with caller.streaming("Go", **fields) as chunks:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    parts = [part["function"] for delta in deltas for part in delta.get("tool_calls", ())]
    whole = [call["function"] for call in choice["message"].get("tool_calls", ())]
    assert choice["finish_reason"] == "length"
    assert "".join(part["arguments"] for part in parts) == "".join(
        call["arguments"] for call in whole
    )
    assert [part["name"] for part in parts if part.get("name")] == [call["name"] for call in whole]
    content = choice["message"]["content"] or ""
    assert content == "".join(delta.get("content") or "" for delta in deltas)
    assert "[" not in content


def test_a_cut_call_can_be_sent_back(caller: Server):
    fields = {"tools": [TOOL], "max_tokens": 8}
    [choice] = caller.ask("Go", **fields)[1]["choices"]
    turn, question = choice["message"], {"role": "user", "content": "Go"}
    [call] = turn["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "no JSON"}
    for rest in ([result], [question], [result, {"role": "assistant", "content": "x"}, question]):
        status, body = caller.post(CHAT, fields | {"messages": [question, turn, *rest]})
        assert status == 200, body


@pytest.mark.parametrize("arguments", ["null", "[]", '{"a": 1,}', "{'a': 1}", "```json\n{}\n```"])
def test_any_string_may_be_the_arguments_of_an_earlier_call(server: Server, arguments: str):
    call = {"id": "call_abc", "function": {"name": "f", "arguments": arguments}}
    turns = [
        {"role": "user", "content": SUM},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_abc", "content": "1"},
    ]
    status, body = server.post(CHAT, {"messages": turns, "max_tokens": 1})
    assert status == 200, body
    items = [
        {"role": "user", "content": SUM},
        {"type": "function_call", "call_id": "call_abc", "name": "f", "arguments": arguments},
        {"type": "function_call_output", "call_id": "call_abc", "output": "1"},
    ]
    assert server.post(RESPONSES, {"input": items, "max_output_tokens": 1})[0] == 200
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": arguments}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "1"}
    body = {
        "messages": [
            {"role": "user", "content": SUM},
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ],
        "max_tokens": 1,
    }
    assert server.post(MESSAGES, body)[0] == 200


# Conversations that are too long

LONG = [("user", "1 + 1 " * 9000)]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (chat, r"maximum context length is 8192 tokens"),
        (response, r"maximum context length is 8192 tokens"),
        (message, r"prompt is too long: \d{5} tokens > 8192 maximum"),
    ],
)
def test_an_overflow_is_told_in_the_words_that_agents_look_for(
    server: Server, ask: Ask, words: str
):
    status, body = ask(server, LONG)
    assert status == 400 and re.search(words, body["error"]["message"])
    if ask is not message:
        assert body["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(("ask", "words"), [(chat, "maximum context"), (message, "too long")])
def test_a_stream_that_overflows_is_told_so_too(server: Server, ask: Ask, words: str):
    status, body = ask(server, LONG, stream=True)
    assert status == 400 and words in body["error"]["message"]
