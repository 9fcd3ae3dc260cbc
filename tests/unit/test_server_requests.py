"""What requests ask for, as options of ours."""

import base64
import io
from typing import Any

import PIL.Image
import pytest
from pydantic import BaseModel, ValidationError

from magistral_mlx import InvalidOption, Options
from magistral_mlx.engine.dry import Dry
from magistral_mlx.errors import MagistralError
from magistral_mlx.server.anthropic.messages import conversation, message_options
from magistral_mlx.server.anthropic.schemas import MessageRequest
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.ollama.schemas import OllamaChatRequest
from magistral_mlx.server.ollama.translation import generation_options
from magistral_mlx.server.openai.chat import chat_messages, chat_options
from magistral_mlx.server.openai.chat_schemas import ChatRequest
from magistral_mlx.server.openai.completion_schemas import CompletionRequest
from magistral_mlx.server.openai.response_request import (
    input_items,
    response_messages,
    response_options,
)
from magistral_mlx.server.openai.response_schemas import ResponseRequest

HELLO = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}}
OTHER = {"type": "function", "function": {"name": "g"}}
TEXT: dict[str, Any] = {"type": "text"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "s"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}


def chat(**fields: Any) -> Options:
    return chat_options(ChatRequest.model_validate({"messages": [HELLO]} | fields))


def message(**fields: Any) -> Options:
    return message_options(MessageRequest.model_validate({"messages": [HELLO]} | fields))


def response(**fields: Any) -> Options:
    return response_options(ResponseRequest.model_validate({"input": "Hello"} | fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0.2, "top_p": 0.5, "top_k": 7}, {"temperature": 0.2, "top_k": 7}),
        ({"min_p": 0.1, "presence_penalty": -1}, {"min_p": 0.1, "presence_penalty": -1}),
        ({"frequency_penalty": 1.5, "n": 2}, {"frequency_penalty": 1.5, "n": 2}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"top_p": 0}, {"top_p": 1e-6}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"seed": 2**32 + 5}, {"seed": 5}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["a", "", "b"]}, {"stop": ("a", "b")}),
        ({"stop": []}, {"stop": ()}),
        ({"logit_bias": {"12": -100}}, {"logit_bias": {12: -100.0}}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"dry": True}, {"dry": True}),
        ({"dry": {"base": 2}}, {"dry": Dry(base=2)}),
        ({"random_seed": 4}, {"seed": 4}),
        ({"random_seed": 4, "seed": 5}, {"seed": 5}),
        ({"prompt_mode": "reasoning"}, {"ask_for_thinking": True}),
        ({"prompt_mode": None, "safe_prompt": False, "guardrails": []}, {}),
        ({"min_thinking": 9, "keep_thinking": False}, {"min_thinking": 9, "keep_thinking": False}),
        ({"image_tokens": 40}, {"image_tokens": 40}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        ({"response_format": SCHEMA}, {"json_schema": {"type": "object"}}),
        ({"response_format": {"type": "text"}}, {"json_schema": None}),
        ({"temperature": None, "stop": None, "tools": None}, {"temperature": 0.7}),
    ],
    ids=str,
)
def test_every_field_of_a_chat_reaches_its_option(fields: Any, expected: Any):
    options = chat(**fields)
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize("fields", [{"seed": -1}, {"seed": -7}, {"random_seed": -1}], ids=str)
def test_a_negative_seed_is_a_random_one(fields: Any):
    seeds = {options(**fields).seed for options in (chat, message, response) for _ in "123"}
    assert len(seeds) == 9
    ollama = {"model": "demo", "options": {"seed": -1}}
    assert generation_options(OllamaChatRequest.model_validate(ollama)).seed is None


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, "on"),
        ({"reasoning_effort": "none"}, "off"),
        ({"reasoning_effort": "minimal"}, 512),
        ({"reasoning_effort": "low"}, 2048),
        ({"reasoning_effort": "medium"}, 8192),
        ({"reasoning_effort": "high"}, "on"),
        ({"reasoning_effort": "low", "thinking": 100}, 100),
        ({"thinking": "off"}, "off"),
        ({"thinking": False}, "off"),
    ],
    ids=str,
)
def test_effort_and_thinking(fields: Any, thinking: Any):
    assert chat(**fields).thinking == thinking
    effort = {"reasoning": {"effort": fields.pop("reasoning_effort", None)}}
    assert response(**fields, **effort).thinking == thinking


def test_thinking_of_a_message_is_off_unless_it_is_asked_for():
    assert message().thinking == "off"
    assert message(thinking={"type": "enabled", "budget_tokens": 99}).thinking == 99
    adaptive: Any = {"thinking": {"type": "adaptive"}}
    assert message(**adaptive).thinking == "on"
    assert message(**adaptive, output_config={"effort": "low"}).thinking == 2048


def test_thinking_that_is_asked_for_is_asked_of_the_model():
    assert not chat().ask_for_thinking and not response().ask_for_thinking
    assert chat(reasoning_effort="low").ask_for_thinking and chat(thinking=9).ask_for_thinking
    assert response(reasoning={"effort": "low"}).ask_for_thinking
    assert message(thinking={"type": "enabled", "budget_tokens": 99}).ask_for_thinking


@pytest.mark.parametrize(
    ("choice", "names", "kind"),
    [
        (None, ["f", "g"], "auto"),
        ("required", ["f", "g"], "required"),
        ("any", ["f", "g"], "required"),
        ("none", ["f", "g"], "none"),
        ({"type": "function", "function": {"name": "g"}}, ["g"], "required"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}},
            ["f"],
            "auto",
        ),
    ],
    ids=str,
)
def test_the_choice_among_tools(choice: Any, names: list[str], kind: str):
    options = chat(tools=[TOOL, OTHER], tool_choice=choice)
    assert [tool.name for tool in options.tools or ()] == names  # type: ignore[union-attr]
    assert options.tool_choice == kind
    assert all(tool.strict == (tool.name == "f") for tool in options.tools or ())  # type: ignore[union-attr]


def test_calls_that_are_required_leave_no_room_for_a_form():
    options = chat(tools=[TOOL], tool_choice="required", response_format=SCHEMA)
    assert options.json_schema is None and options.tool_choice == "required"
    assert chat(tools=[TOOL], response_format=SCHEMA).json_schema is not None
    assert chat(tools=[TOOL], tool_choice="required", regex="a").regex is None


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"response_format": SCHEMA, "regex": "a"}, "response_format and regex exclude each"),
        ({"regex": "a", "choice": ["b"]}, "exclude each other"),
        ({"response_format": NO_SCHEMA}, "schema is missing"),
        ({"structured_outputs": {"structural_tag": {}}}, "structural_tag is not supported"),
        ({"choice": []}, "choice"),
        ({"json_schema": "{"}, "json_schema"),
    ],
    ids=str,
)
@pytest.mark.parametrize("choice", ["auto", "required", TOOL])
def test_forms_are_checked_where_a_call_is_required_too(
    fields: dict[str, Any], told: str, choice: Any
):
    with pytest.raises((BadRequest, InvalidOption), match=told):
        chat(tools=[TOOL], tool_choice=choice, **fields)


def test_choices_that_cannot_be_met_are_refused():
    with pytest.raises(BadRequest, match="tools hold f"):
        chat(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "x"}})
    with pytest.raises(InvalidOption, match="no tools"):
        chat(tool_choice="required")
    with pytest.raises(BadRequest, match="it may hold 16"):
        chat(stop=["a"] * 17)
    with pytest.raises(BadRequest, match=r"tool_choice\.name is missing"):
        message(tools=[{"name": "f", "input_schema": {}}], tool_choice={"type": "tool"})


def ollama(**fields: Any) -> Options:
    request = OllamaChatRequest.model_validate({"model": "demo", "messages": [HELLO]} | fields)
    return generation_options(request)


def in_function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def in_namespace(name: str) -> dict[str, Any]:
    return {"type": "namespace", "name": "n", "tools": [{"type": "custom", "name": name}]}


EACH_ENDPOINT = pytest.mark.parametrize(
    ("ask", "tool"),
    [
        (chat, in_function),
        (ollama, in_function),
        (message, lambda name: {"name": name, "input_schema": {}}),
        (response, lambda name: {"type": "function", "name": name}),
        (response, in_namespace),
    ],
)


@EACH_ENDPOINT
def test_a_tool_without_a_name_is_refused(ask: Any, tool: Any):
    with pytest.raises(ValidationError, match="at least 1 character"):
        ask(tools=[tool("f"), tool("")])


@EACH_ENDPOINT
def test_two_tools_of_one_name_are_refused(ask: Any, tool: Any):
    with pytest.raises(BadRequest, match=r"2 tools have the name .*f'") as refused:
        ask(tools=[tool("f"), tool("g"), tool("f")])
    assert refused.value.param == "tools"


def test_messages_of_a_chat_keep_their_order_and_parts():
    request = ChatRequest.model_validate(
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "a"}]},
                {"role": "user", "content": "b", "name": "me"},
                {
                    "role": "assistant",
                    "content": [{"type": "refusal", "refusal": "c"}],
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"x": 1}}}],
                },
                {"role": "tool", "content": "d", "tool_call_id": "1"},
            ]
        }
    )
    assert chat_messages(request) == [
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "user", "content": "b"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "c"}],
            "tool_calls": [
                {
                    "id": "1",
                    "type": "function",
                    "function": {"name": "f", "arguments": {"x": 1}},
                }
            ],
        },
        {"role": "tool", "content": "d", "tool_call_id": "1"},
    ]


def test_a_message_with_results_and_words_tells_the_results_first():
    request = MessageRequest.model_validate(
        {
            "system": "s",
            "messages": [
                HELLO,
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "And?"},
                        {"type": "tool_result", "tool_use_id": "1", "is_error": True},
                        {
                            "type": "document",
                            "title": "T",
                            "source": {"type": "text", "data": "d"},
                        },
                    ],
                },
            ],
        }
    )
    system, _, call, result, user = conversation(request)
    assert system == {"role": "system", "content": "s"}
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert result["content"] == [{"type": "text", "text": "Error: "}]
    assert [part["text"] for part in user["content"]] == ["And?", "T\n\nd"]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"metadata": {"\ud800": 1}},
        {"seed": float("nan")},
        {"metadata": [[float("inf")]]},
    ],
    ids=["text", "key", "nan", "infinity"],
)
def test_what_is_no_json_is_refused_before_anything_else(fields: Any):
    with pytest.raises(ValidationError, match=r"surrogate|NaN"):
        ChatRequest.model_validate({"messages": [HELLO]} | fields)


def test_a_request_that_is_nested_too_deeply_is_refused():
    nested: Any = "x"
    for _ in range(100):
        nested = [nested]
    with pytest.raises(ValidationError, match="nested deeper than 64"):
        ChatRequest.model_validate({"messages": [HELLO], "metadata": nested})


_MANY = 20_000
_LISTS: list[tuple[type[BaseModel], str, Any]] = [
    (ChatRequest, "messages", {}),
    (ChatRequest, "messages", HELLO),
    (ChatRequest, "tools", {}),
    (ChatRequest, "stop", 1),
    (ChatRequest, "choice", 1),
    (CompletionRequest, "prompt", {}),
    (CompletionRequest, "prompt", "a"),
    (ResponseRequest, "input", {}),
    (ResponseRequest, "tools", {}),
    (ResponseRequest, "include", 1),
    (MessageRequest, "messages", {}),
    (MessageRequest, "system", {}),
    (MessageRequest, "tools", {}),
    (MessageRequest, "stop_sequences", "a"),
]


@pytest.mark.parametrize(("schema", "field", "item"), _LISTS)
def test_a_list_costs_no_more_errors_however_long_it_is(
    schema: type[BaseModel], field: str, item: Any
):
    whole = {"messages": [HELLO], "input": "a", "prompt": "a"}
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(whole | {field: [item] * _MANY})
    assert caught.value.error_count() < 5


@pytest.mark.parametrize("schema", [ChatRequest, MessageRequest])
def test_so_do_the_parts_of_a_message(schema: type[BaseModel]):
    with pytest.raises(ValidationError) as caught:
        schema.model_validate({"messages": [{"role": "user", "content": [{}] * _MANY}]})
    assert caught.value.error_count() < 5


def test_a_table_costs_no_more_errors_however_large_it_is():
    with pytest.raises(ValidationError, match="holds 20,000") as caught:
        chat(logit_bias=dict.fromkeys(map(str, range(_MANY)), "a"))
    assert caught.value.error_count() == 1


def test_minus_one_is_no_limit_and_zero_is_none_at_all():
    assert chat(max_tokens=-1).max_tokens is None
    assert chat(max_completion_tokens=-1, max_tokens=7).max_tokens == 7
    assert message(max_tokens=-1).max_tokens is None
    assert response(max_output_tokens=-1).max_tokens is None
    for wrong in (0, -2):
        with pytest.raises(ValidationError):
            chat(max_tokens=wrong)


@pytest.mark.parametrize(
    "fields",
    [
        {"functions": [{"name": "f"}]},
        {"functions": []},
        {"function_call": "auto"},
        {"function_call": {"name": "f"}},
    ],
)
def test_legacy_functions_are_refused_by_name(fields: dict[str, Any]):
    with pytest.raises(BadRequest, match="is the old name of tool") as refused:
        chat(**fields)
    assert refused.value.param in fields
    assert chat(functions=None, function_call=None)


@pytest.mark.parametrize(
    ("ask", "fields", "told"),
    [
        ("response", {"stop": ["a"]}, "stop is not supported here. /v1/chat/completions takes it"),
        ("response", {"regex": "a+"}, "regex is not supported here. /v1/chat/completions takes it"),
        ("response", {"response_format": SCHEMA}, "Give text.format"),
        ("response", {"max_tokens": 5}, "Give max_output_tokens"),
        ("message", {"response_format": SCHEMA}, "Give output_config.format"),
        ("message", {"stop": "a"}, "Give stop_sequences"),
        ("message", {"max_completion_tokens": 5}, "Give max_tokens"),
        ("ollama", {"response_format": SCHEMA}, "Give format"),
        ("ollama", {"max_tokens": 5}, "Give options.num_predict"),
    ],
)
def test_what_another_api_would_hold_an_answer_to_is_refused(ask: str, fields: Any, told: str):
    asked = {"response": response, "message": message, "ollama": ollama}[ask]
    with pytest.raises(ValidationError, match=told):
        asked(**fields)
    unset = dict.fromkeys(fields) | {"logit_bias": {}, "ignore_eos": False}
    assert asked(**unset)


def test_the_earlier_name_of_a_messages_form_is_taken():
    form = {"type": "json_schema", "schema": {"type": "object"}}
    assert message(output_format=form).json_schema == {"type": "object"}
    assert message(output_format=form, output_config={"format": form}).json_schema
    with pytest.raises(BadRequest, match="exclude each other"):
        message(output_format=form, output_config={"format": form | {"schema": {}}})


def test_the_old_form_of_a_call_and_its_result_is_read():
    call = {"name": "f", "arguments": '{"a": 1}'}
    turn = {"role": "assistant", "content": None, "function_call": call}
    result = {"role": "function", "name": "f", "content": None}
    messages = ChatRequest.model_validate({"messages": [HELLO, turn, result]})
    said, answered = chat_messages(messages)[1:]
    assert said["tool_calls"] == [{"function": call}] and "function_call" not in said
    assert answered == {"role": "tool", "tool_call_id": None, "content": ""}


@pytest.mark.parametrize("content", [None, "", []])
def test_a_result_may_hold_nothing(content: Any):
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turn = {"role": "assistant", "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "a", "content": content}
    [*_, answered] = chat_messages(ChatRequest.model_validate({"messages": [HELLO, turn, result]}))
    assert answered == {"role": "tool", "tool_call_id": "a", "content": ""}


def test_images_of_results_follow_as_a_user_turn():
    calls = [
        {"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}} for id in "ab"
    ]
    shown = [TEXT | {"text": "a chart"}, IMAGE]
    messages = [
        HELLO,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "a", "content": [IMAGE]},
        {"role": "tool", "tool_call_id": "b", "content": shown},
        {"role": "user", "content": "So?"},
    ]
    found = chat_messages(ChatRequest.model_validate({"messages": messages}))
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "tool", "user"]
    assert found[2]["content"] == [TEXT | {"text": "(see the image)"}]
    assert found[3]["content"] == shown[:1]
    first, second, said = found[4]["content"]
    assert first == IMAGE | {"where": "messages[2].content[0].image_url.url"}
    assert second == IMAGE | {"where": "messages[3].content[1].image_url.url"}
    assert said == TEXT | {"text": "So?"}


# Documents

PLAIN = base64.b64encode(b"Chapter one.\n").decode()


def documents(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    request = {"messages": [{"role": "user", "content": list(blocks)}]}
    [said] = conversation(MessageRequest.model_validate(request))
    return said["content"]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ({"type": "text", "data": "Chapter one."}, "Report\n\nFor you.\n\nChapter one."),
        (
            {"type": "base64", "media_type": "text/plain", "data": PLAIN},
            "For you.|File: Report\n```\nChapter one.\n```",
        ),
        ({"type": "content", "content": "Chapter one."}, "Report\n\nFor you.\n\n|Chapter one."),
        ({"type": "content", "content": [TEXT | {"text": "1"}]}, "Report\n\nFor you.\n\n|1"),
    ],
)
def test_documents_are_read_from_any_source(source: dict[str, Any], wanted: str):
    block = {"type": "document", "title": "Report", "context": "For you.", "source": source}
    assert "|".join(part["text"] for part in documents(block)) == wanted


def test_a_search_result_stands_with_its_title_and_source():
    found = {"type": "search_result", "source": "https://a.example", "title": "A", "content": []}
    found["content"] = [TEXT | {"text": "b"}, TEXT | {"text": "c"}]
    assert documents(found) == [TEXT | {"text": "A\nhttps://a.example\n\nbc"}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": [found]}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    messages = [
        HELLO,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    [*_, answered] = conversation(MessageRequest.model_validate({"messages": messages}))
    assert answered["content"] == documents(found)


def test_tools_that_ran_at_the_vendors_are_left_out():
    used = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}
    page = {"type": "web_search_result", "url": "https://a", "title": "A", "encrypted_content": "x"}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": [page]}
    failed = found | {"content": {"type": "web_search_tool_result_error", "error_code": "x"}}
    for kind in (found, failed):
        turn = {"role": "assistant", "content": [used, kind, TEXT | {"text": "Yes."}]}
        request = {"messages": [HELLO, turn, HELLO]}
        said = conversation(MessageRequest.model_validate(request))[1]
        assert said == {"role": "assistant", "content": "Yes."}


def test_files_are_read_on_every_api():
    url = f"data:text/plain;base64,{PLAIN}"
    wanted = "File: a.py\n```py\nChapter one.\n```"
    for part in (
        {"type": "file", "file": {"filename": "a.py", "file_data": url}},
        {"type": "file", "file": {"filename": "a.py", "file_data": PLAIN}},
        {"type": "document_url", "document_name": "a.py", "document_url": url},
    ):
        messages = [{"role": "user", "content": [part]}]
        [said] = chat_messages(ChatRequest.model_validate({"messages": messages}))
        assert said["content"] == [TEXT | {"text": wanted}]
    file = {"type": "input_file", "filename": "a.py", "file_data": url}
    request = ResponseRequest.model_validate({"input": [{"role": "user", "content": [file]}]})
    [said] = response_messages(input_items(request), None)
    assert said["content"] == [TEXT | {"text": wanted}]


def test_a_pdf_without_text_becomes_images_of_its_pages():
    scan = io.BytesIO()
    PIL.Image.new("RGB", (60, 40), "white").save(scan, "pdf")
    data = base64.b64encode(scan.getvalue()).decode()
    source = {"type": "base64", "media_type": "application/pdf", "data": data}
    name, page = documents({"type": "document", "source": source})
    assert name["text"] == "File: document (1 page, as images)"
    assert page["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("https://a.example/b.pdf", "fetches no documents"),
        ("%%%", "not valid base64"),
        ("", "empty"),
    ],
)
def test_a_document_that_cannot_be_read_is_refused(data: str, why: str):
    source = {"type": "base64", "media_type": "application/pdf", "data": data}
    with pytest.raises(MagistralError, match=why):
        documents({"type": "document", "source": source})


def test_the_prompt_does_not_vary_with_claude_codes_billing_header():
    system = [TEXT | {"text": "You are an agent."}]
    plain = {"messages": [HELLO], "system": system}
    for header in ("cc_version=2.1.197; cch=1a2b;", "cc_version=9;"):
        billing = TEXT | {"text": f"x-anthropic-billing-header: {header}"}
        billed = plain | {"system": [billing, *system]}
        assert conversation(MessageRequest.model_validate(billed)) == conversation(
            MessageRequest.model_validate(plain)
        )
