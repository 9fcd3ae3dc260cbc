"""Tools of responses that are no plain functions, as coding agents send them."""

import json
import re
from typing import Any

import pytest

from magistral_mlx.server.openai.response_tools import (
    custom_input,
    function_name,
    shell_action,
)
from tests.serving import Server

PATH = "/v1/responses"
SUM = "What is 37 + 85?"
SIGN = {
    "type": "object",
    "properties": {"sign": {"enum": ["+", "-"]}},
    "required": ["sign"],
    "additionalProperties": False,
}


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "strict": True, "parameters": SIGN}


AGENTS = {
    "type": "namespace",
    "name": "agents",
    "description": "Sub-agents.",
    "tools": [function("wait"), function("send")],
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Applies a patch.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'},
}
SHELL = {"type": "local_shell"}
HOSTED = [{"type": "web_search", "external_web_access": True}, {"type": "image_generation"}]
TOOLS = [function("add"), AGENTS, PATCH, SHELL, *HOSTED]


def respond(server: Server, **fields: Any) -> tuple[int, Any]:
    body = {"input": SUM, "temperature": 0, "max_output_tokens": 300, "thinking": 8} | fields
    return server.post(PATH, body)


def calls_of(body: Any) -> list[dict[str, Any]]:
    return [item for item in body["output"] if item["type"].endswith("_call")]


def test_tools_of_all_kinds_are_taken_and_hosted_ones_left_out(server: Server):
    def tokens(tools: list[Any]) -> int:
        status, body = respond(server, tools=tools, max_output_tokens=1)
        assert status == 200, body
        return body["usage"]["input_tokens"]

    assert tokens(HOSTED) == tokens([])
    assert tokens(TOOLS) == tokens([function("add"), AGENTS, PATCH, SHELL]) > tokens([AGENTS])


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "name": "wait"},
        {"type": "function", "name": "wait", "namespace": "agents"},
        {
            "type": "allowed_tools",
            "mode": "required",
            "tools": [{"type": "function", "name": "wait"}],
        },
    ],
)
def test_a_function_of_a_namespace_comes_back_under_its_names(server: Server, choice: Any):
    fields = {"tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    status, body = respond(server, **fields)
    assert status == 200, body
    [call] = calls_of(body)
    assert (call["type"], call["namespace"], call["name"]) == ("function_call", "agents", "wait")
    assert json.loads(call["arguments"])["sign"] in ("+", "-")


def test_a_custom_tool_gives_text(server: Server):
    fields = {"tools": [PATCH], "tool_choice": {"type": "custom", "name": "apply_patch"}}
    status, body = respond(server, **fields)
    assert status == 200, body
    call = calls_of(body)[0]
    assert (call["type"], call["name"]) == ("custom_tool_call", "apply_patch")
    assert isinstance(call["input"], str) and "arguments" not in call


def test_the_input_of_a_custom_tool_follows_its_grammar(server: Server):
    for syntax, definition, wanted in [
        ("lark", 'start: "say " WORD "!\\n"\nWORD: /"[ab]"/', r'say "[ab]"!\n'),
        ("regex", r"\\(1|2)/\t\"", r'\\[12]/\t"'),
    ]:
        form = {"type": "grammar", "syntax": syntax, "definition": definition}
        tool = {"type": "custom", "name": "say", "format": form}
        status, body = respond(server, tools=[tool, function("add")], tool_choice=tool)
        assert status == 200, body
        assert re.fullmatch(wanted, calls_of(body)[0]["input"])


@pytest.mark.parametrize(
    ("form", "why"),
    [
        ({"type": "grammar", "syntax": "ebnf", "definition": "x"}, "is not supported"),
        ({"type": "grammar", "syntax": "lark"}, "is not supported"),
        ({"type": "grammar", "syntax": "lark", "definition": "start: nobody"}, "'say'"),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused(server: Server, form: Any, why: str):
    tool = {"type": "custom", "name": "say", "format": form}
    status, body = respond(server, tools=[tool])
    assert status == 400 and why in body["error"]["message"], body


def test_a_command_of_the_local_shell_is_an_action(server: Server):
    status, body = respond(server, tools=[SHELL], tool_choice={"type": "local_shell"})
    assert status == 200, body
    call = calls_of(body)[0]
    assert call["type"] == "local_shell_call" and call["action"]["type"] == "exec"
    assert isinstance(call["action"]["command"], list)


@pytest.mark.parametrize("kind", ["web_search", "image_generation", "file_search"])
def test_a_hosted_tool_cannot_be_chosen(server: Server, kind: str):
    status, body = respond(server, tools=TOOLS, tool_choice={"type": kind})
    assert status == 400 and "does not run" in body["error"]["message"]
    assert body["error"]["param"] == "tool_choice"


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": SUM},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "x"}},
    {"type": "reasoning", "id": "rs_0", "summary": [], "encrypted_content": "gAAAA-of-a-vendor"},
    {
        "type": "function_call",
        "call_id": "call_1",
        "name": "wait",
        "namespace": "agents",
        "arguments": "{}",
    },
    {"type": "function_call_output", "call_id": "call_1", "output": "1"},
    {"type": "custom_tool_call", "call_id": "call_2", "name": "apply_patch", "input": "*** Begin"},
    {"type": "custom_tool_call_output", "call_id": "call_2", "output": "Done"},
    {
        "type": "local_shell_call",
        "call_id": "call_3",
        "status": "completed",
        "action": {"type": "exec", "command": ["ls"], "env": {}},
    },
    {"type": "local_shell_call_output", "id": "call_3", "output": '{"output": "a.txt"}'},
    {"role": "developer", "content": "Be brief."},
]


def test_histories_of_agents_are_read(server: Server):
    status, body = respond(server, input=HISTORY, tools=TOOLS)
    assert status == 200, body
    status, skipped = respond(server, input=[HISTORY[0], HISTORY[1]], max_output_tokens=1)
    assert status == 200
    plain = respond(server, input=HISTORY[:1], max_output_tokens=1)[1]
    assert skipped["usage"]["input_tokens"] == plain["usage"]["input_tokens"]


def test_an_item_of_an_unknown_type_is_refused(server: Server):
    status, body = respond(server, input=[HISTORY[0], {"type": "telepathy"}])
    assert status == 400 and "telepathy" in body["error"]["message"]


def test_thinking_can_be_handed_back_encoded(server: Server):
    include = ["reasoning.encrypted_content"]
    status, body = respond(server, include=include, store=False, thinking="on")
    assert status == 200
    reasoning, message = body["output"]
    item = {"type": "reasoning", "summary": []}
    follow = {"role": "user", "content": "Sure?"}

    def tokens(*sent: Any) -> int:
        items = [HISTORY[0], *sent, message, follow]
        return respond(server, input=items, max_output_tokens=1)[1]["usage"]["input_tokens"]

    encoded = tokens(item | {"encrypted_content": reasoning["encrypted_content"]})
    assert encoded == tokens({k: v for k, v in reasoning.items() if k != "encrypted_content"})
    assert encoded > tokens() == tokens(item | {"encrypted_content": "of another"})


@pytest.mark.parametrize(
    ("name", "namespace", "expected"),
    [
        ("f", None, "f"),
        ("wait", "agents", "agents__wait"),
        ("search", "mcp__files__", "mcp__files__search"),
    ],
)
def test_names_that_the_template_takes_stay(name: str, namespace: str | None, expected: str):
    assert function_name(name, namespace) == expected


def test_other_names_become_such_and_stay_apart():
    names = ["a.b", "a b", "ä", "f" * 100, "f" * 99, ""]
    made = [function_name(name) for name in names]
    assert len(set(made)) == len(names)
    assert all(0 < len(name) <= 64 and name.replace("-", "_").isidentifier() for name in made)


def test_calls_are_read_as_far_as_they_go():
    assert custom_input('{"input": "*** Be') == "*** Be"
    assert custom_input("{'a'") == "{'a'"
    assert shell_action('{"command": ["ls", "-')["command"] == ["ls", "-"]
    assert shell_action('{"command": "ls -l", "timeout_ms": 5}') == {
        "type": "exec",
        "command": ["bash", "-lc", "ls -l"],
        "env": {},
        "timeout_ms": 5,
    }
    assert shell_action("nothing")["command"] == []
