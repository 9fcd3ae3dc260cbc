"""Calls to tools over each API: held to a schema with the demo model, free with a scripted one."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from magistral_mlx.server.settings import Settings
from tests.scripted import write_scripted_checkpoint
from tests.serving import Server, live_server

SUM = {"role": "user", "content": "What is 37 + 85?"}
PARAMETERS = {
    "type": "object",
    "properties": {"sign": {"enum": ["+", "-"]}, "sure": {"type": "boolean"}},
    "required": ["sign", "sure"],
    "additionalProperties": False,
}


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS}}


TOOLS: list[Any] = [function("add"), function("guess")]


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    ours: dict[str, Any] = {"model": "demo", "messages": [SUM], "tools": TOOLS, "temperature": 0}
    ours |= {"max_tokens": 600, "extra_body": {"thinking": 16}}
    return client.chat.completions.create(**(ours | options))


def is_valid(arguments: str) -> bool:
    given = json.loads(arguments)
    return given["sign"] in ("+", "-") and isinstance(given["sure"], bool) and len(given) == 2


def test_a_call_is_made_where_one_is_required(client: openai.OpenAI):
    choice = ask(client, tool_choice="required", parallel_tool_calls=False).choices[0]
    [call] = choice.message.tool_calls
    assert call.function.name in ("add", "guess") and is_valid(call.function.arguments)
    assert call.type == "function" and call.id
    assert choice.finish_reason == "tool_calls" and choice.message.content is None


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "guess"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [function("guess")]},
        },
    ],
    ids=["named", "allowed"],
)
def test_the_function_that_is_named_is_called(client: openai.OpenAI, choice: Any):
    found = ask(client, tool_choice=choice, parallel_tool_calls=False).choices[0]
    assert [call.function.name for call in found.message.tool_calls] == ["guess"]


def test_a_call_is_streamed_in_pieces(client: openai.OpenAI):
    chunks = list(ask(client, tool_choice="required", parallel_tool_calls=False, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    parts = [part for delta in deltas for part in delta.tool_calls or ()]
    assert parts[0].id and parts[0].function.name and parts[0].type == "function"
    assert all(part.id is None and part.index == 0 for part in parts[1:])
    assert len(parts) > 3 and is_valid("".join(part.function.arguments for part in parts))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tools_that_must_not_be_called_are_not_offered(client: openai.OpenAI):
    hidden = ask(client, tool_choice="none", extra_body={})
    assert hidden.choices[0].message.content == "122"
    assert hidden.usage.prompt_tokens < ask(client, max_tokens=1).usage.prompt_tokens


def test_a_function_that_is_not_there_cannot_be_chosen(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="the tools hold add, guess") as wrong:
        ask(client, tool_choice={"type": "function", "function": {"name": "solve"}})
    assert wrong.value.param == "tool_choice"


# A model that calls by itself


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Says "Wa" and calls f({}); to the result it says "Zero"."""
    folder = write_scripted_checkpoint(
        tmp_path_factory.mktemp("server") / "caller",
        ["[/INST]", "Wa", "[TOOL_CALLS]", "f", "[ARGS]", "{\n }", "</s>"],
        ["[/TOOL_RESULTS]", "Zero", "</s>"],
    )
    with live_server(Settings(models=(str(folder),))) as server:
        yield server


F = {"name": "f", "parameters": {"type": "object", "properties": {}}}


def test_a_tools_result_is_answered(caller: Server):
    client = openai.OpenAI(base_url=caller.url + "/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": "caller", "tools": [{"type": "function", "function": F}]}
    first = client.chat.completions.create(messages=[{"role": "user", "content": "Go"}], **options)
    message = first.choices[0].message
    assert message.content == "Wa" and first.choices[0].finish_reason == "tool_calls"
    [call] = message.tool_calls or ()
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "0"}
    turns: list[Any] = [{"role": "user", "content": "Go"}, message, result]
    second = client.chat.completions.create(messages=turns, **options)
    assert second.choices[0].message.content == "Zero"
    turns[-1] = result | {"tool_call_id": "another"}
    with pytest.raises(openai.BadRequestError, match="names the call 'another'"):
        client.chat.completions.create(messages=turns, **options)


def test_a_response_follows_a_functions_output(caller: Server):
    client = openai.OpenAI(base_url=caller.url + "/v1", api_key="none", max_retries=0)
    options: dict[str, Any] = {"model": "caller", "tools": [{"type": "function"} | F]}
    with client.responses.stream(input="Go", **options) as stream:
        kinds = [event.type for event in stream]
        first = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.done") == 1
    text, call = first.output
    assert (text.type, call.type, call.name) == ("message", "function_call", "f")  # type: ignore[union-attr]
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "0"}  # type: ignore[union-attr]
    second = client.responses.create(
        input=[output],  # type: ignore[list-item]
        previous_response_id=first.id,
        **options,
    )
    assert second.output_text == "Zero"


def test_a_tool_result_block_is_answered(caller: Server):
    client = anthropic.Anthropic(base_url=caller.url, api_key="none", max_retries=0)
    tools: list[Any] = [{"name": "f", "input_schema": F["parameters"]}]
    options: dict[str, Any] = {"model": "caller", "max_tokens": 50, "tools": tools}
    with client.messages.stream(messages=[{"role": "user", "content": "Go"}], **options) as stream:
        stream.until_done()
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    text, use = first.content
    assert text.type == "text" and text.text == "Wa"
    assert use.type == "tool_use" and (use.name, use.input) == ("f", {})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "0", "is_error": False}
    turns: list[Any] = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    [said] = client.messages.create(messages=turns, **options).content
    assert said.type == "text" and said.text == "Zero"


def loose(name: str, **value: Any) -> dict[str, Any]:
    """A function that is not strict, with one argument of the schema `value`."""
    parameters = {
        "type": "object",
        "properties": {"value": value},
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


PATH = loose("open", type="string", format="path", maxLength=8)


@pytest.mark.parametrize(
    "options",
    [
        {"parallel_tool_calls": False},
        {"tool_choice": "required"},
        {"tools": [PATH, {**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": True}}]},
    ],
    ids=["one call", "a required call", "another tool is strict"],
)
def test_one_tools_schema_does_not_refuse_the_request(
    client: openai.OpenAI, options: dict[str, Any]
):
    tools = [
        PATH,
        loose("tag", type="array", items={"enum": ["a", "b"]}, maxItems=2, uniqueItems=True),
        loose("add", type="integer", minimum=-(2**63), maximum=2**63 - 1),
    ]
    found = ask(client, **({"tools": tools} | options)).choices[0]
    assert found.finish_reason in ("stop", "tool_calls", "length")
    for call in found.message.tool_calls or ():
        assert "value" in json.loads(call.function.arguments) or call.function.name == "add"


def test_a_strict_tool_that_cannot_be_followed_is_refused_by_name(client: openai.OpenAI):
    strict = {**PATH, "function": {**PATH["function"], "strict": True}}
    with pytest.raises(openai.BadRequestError, match=r"tool 'open' .*format 'path'"):
        ask(client, tools=[*TOOLS, strict])


def test_one_tools_schema_does_not_refuse_a_message(server: Server):
    asked = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    found = asked.messages.create(
        model="demo",
        max_tokens=600,
        messages=[{"role": "user", "content": "What is 37 + 85?"}],
        tools=[{"name": "open", "input_schema": PATH["function"]["parameters"]}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        extra_body={"temperature": 0},
    )
    [call] = [block for block in found.content if block.type == "tool_use"]
    assert call.name == "open" and isinstance(call.input["value"], str)


# Names that the template does not take, as MCP's clients send them.
ODD = "files.read a file/" + "x" * 60


def test_names_that_the_template_does_not_take_come_back_on_chat(client: openai.OpenAI):
    options: dict[str, Any] = {"tools": [function(ODD)], "parallel_tool_calls": False}
    options["tool_choice"] = {"type": "function", "function": {"name": ODD}}
    [call] = ask(client, **options).choices[0].message.tool_calls
    assert call.function.name == ODD
    chunks = list(ask(client, stream=True, **options))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert parts[0].function.name == ODD
    history = [
        SUM,
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": "122"},
    ]
    assert ask(client, messages=history, tools=[function(ODD)], max_tokens=4).usage


@pytest.mark.parametrize("name", [ODD, "mcp.files", "ein Werkzeug", "é" * 3])
def test_names_that_the_template_does_not_take_come_back_on_messages(server: Server, name: str):
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    tools: list[Any] = [{"name": name, "input_schema": PARAMETERS}]
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 300, "tools": tools}
    asked |= {"tool_choice": {"type": "tool", "name": name}, "messages": [SUM]}
    [*_, call] = client.messages.create(**asked).content
    assert call.name == name
    with client.messages.stream(**asked) as stream:
        [*_, streamed] = stream.get_final_message().content
    assert streamed.name == name
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "122"}
    history = [SUM, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    assert client.messages.create(**(asked | {"messages": history, "max_tokens": 2})).usage
