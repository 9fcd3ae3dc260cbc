"""Responses, asked with OpenAI's own client."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from magistral_mlx.server.errors import NotFound
from magistral_mlx.server.openai.response_items import InputMessage
from magistral_mlx.server.openai.response_store import ResponseStore, StoredResponse
from magistral_mlx.server.openapi_examples import RED_CIRCLE
from tests.serving import Server

SUM = "What is 37 + 85?"
THOUGHT, ANSWER = "7+5+0=2,1; 3+8+1=2,1; 1", "122"
ADD = {
    "type": "function",
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"sign": {"enum": ["+", "-"]}},
        "required": ["sign"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def respond(client: openai.OpenAI, input: Any = SUM, **options: Any) -> Any:
    options = {"model": "demo", "temperature": 0, "input": input} | options
    return client.responses.create(**options)


def test_a_response_has_items_of_thinking_and_text(client: openai.OpenAI):
    response = respond(client, metadata={"a": "b"}, instructions=None)
    assert (response.status, response.output_text, response.error) == ("completed", ANSWER, None)
    reasoning, message = response.output
    assert (reasoning.type, reasoning.summary) == ("reasoning", [])
    assert [part.text for part in reasoning.content] == [THOUGHT]
    assert (message.role, message.status) == ("assistant", "completed")
    assert (response.model, response.metadata, response.tools) == ("demo", {"a": "b"}, [])
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens


def test_a_stream_has_the_official_events_in_their_order(client: openai.OpenAI):
    with client.responses.stream(model="demo", input=SUM, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    without_repeats = [kind for n, kind in enumerate(kinds) if n == 0 or kinds[n - 1] != kind]
    assert without_repeats == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert final.output_text == ANSWER
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [item.id for item in final.output]


def test_the_thinking_is_in_the_summary_where_one_is_asked_for(client: openai.OpenAI):
    options: dict[str, Any] = {"reasoning": {"summary": "auto", "effort": "low"}}
    reasoning = respond(client, **options).output[0]
    assert [part.text for part in reasoning.summary] == [THOUGHT] and not reasoning.content
    deltas = [
        event.delta
        for event in respond(client, stream=True, **options)
        if event.type == "response.reasoning_summary_text.delta"
    ]
    assert "".join(deltas) == THOUGHT


def test_a_response_follows_another(client: openai.OpenAI):
    first = respond(client)
    second = respond(client, "Sure?", previous_response_id=first.id, max_output_tokens=1)
    spelled_out = [
        {"role": "user", "content": SUM},
        *[item.to_dict() for item in first.output],
        {"role": "user", "content": "Sure?"},
    ]
    same = respond(client, spelled_out, max_output_tokens=1, store=False)
    assert second.usage.input_tokens == same.usage.input_tokens > first.usage.total_tokens
    assert second.previous_response_id == first.id
    third = respond(client, "Go", previous_response_id=second.id, max_output_tokens=1)
    assert third.usage.input_tokens > second.usage.input_tokens


def test_a_streamed_response_is_stored_once_it_is_whole(client: openai.OpenAI):
    with client.responses.stream(model="demo", input=SUM, temperature=0) as stream:
        first = stream.get_final_response()
    assert respond(client, "Sure?", previous_response_id=first.id).status == "completed"


def test_what_was_not_stored_cannot_be_followed(client: openai.OpenAI):
    first = respond(client, store=False)
    assert first.store is False
    with pytest.raises(openai.NotFoundError, match="not stored, or has been dropped") as gone:
        respond(client, "Sure?", previous_response_id=first.id)
    assert gone.value.param == "previous_response_id"


def test_memory_of_responses_is_bounded():
    def stored(size: int) -> StoredResponse:
        return StoredResponse((InputMessage(role="user", content="a"),), size)

    store = ResponseStore(most=2, most_bytes=100)
    for id in ("a", "b"):
        store.put(id, stored(10))
    store.get("a")  # used since b was
    store.put("c", stored(10))
    assert len(store) == 2 and store.get("a") and store.get("c")
    with pytest.raises(NotFound):
        store.get("b")
    store.put("large", stored(1000))
    assert len(store) == 1 and store.get("large")


class Sum(BaseModel):
    sure: bool


def test_structured_output_is_parsed_into_a_class(client: openai.OpenAI):
    parsed = client.responses.parse(model="demo", input=SUM, temperature=0, text_format=Sum)
    assert isinstance(parsed.output_parsed, Sum)


def test_a_function_is_called_where_one_is_required(client: openai.OpenAI):
    options: dict[str, Any] = {
        "tools": [ADD],
        "tool_choice": {"type": "function", "name": "add"},
        "parallel_tool_calls": False,
        "extra_body": {"thinking": 16},
    }
    with client.responses.stream(model="demo", input=SUM, temperature=0, **options) as stream:
        kinds = [event.type for event in stream]
        call = stream.get_final_response().output[-1]
    assert kinds.count("response.function_call_arguments.delta") > 1
    assert call.type == "function_call" and call.name == "add"
    assert json.loads(call.arguments)["sign"] in ("+", "-")


def test_images_and_log_probabilities(client: openai.OpenAI):
    content = [
        {"type": "input_image", "image_url": RED_CIRCLE, "detail": "auto"},
        {"type": "input_text", "text": "What is in the picture?"},
    ]
    include = ["message.output_text.logprobs"]
    response = respond(
        client, [{"role": "user", "content": content}], include=include, top_logprobs=1
    )
    assert response.output_text == "A red circle."
    logprobs = response.output[-1].content[0].logprobs
    assert "".join(token.token for token in logprobs) == "A red circle."
    assert all(len(token.top_logprobs) == 1 for token in logprobs)


def test_a_response_that_is_cut_short_says_so(client: openai.OpenAI):
    cut = respond(client, max_output_tokens=5)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.output[-1].status == "incomplete"
    *_, last = respond(client, max_output_tokens=5, stream=True)
    assert last.type == "response.incomplete" and last.response.usage.output_tokens == 5


def test_a_call_that_was_cut_short_is_not_stored(client: openai.OpenAI):
    options: dict[str, Any] = {"tools": [ADD], "tool_choice": "required"}
    options |= {"extra_body": {"thinking": "off"}, "max_output_tokens": 8}
    cut = respond(client, **options)
    assert (cut.output[-1].type, cut.output[-1].status) == ("function_call", "incomplete")
    after = respond(client, "Sure?", previous_response_id=cut.id, max_output_tokens=1)
    assert after.status == "incomplete"  # and not refused


@pytest.mark.parametrize("fields", [{"background": True}, {"prompt": {"id": "pmpt_x"}}], ids=str)
def test_what_is_not_supported_is_refused_in_words(client: openai.OpenAI, fields: dict[str, Any]):
    [name] = fields
    for path in ("/responses", "/responses/compact", "/responses/input_tokens"):
        for body in (fields, fields | {"input": SUM}):
            with pytest.raises(openai.BadRequestError, match=f"{name} is not") as refused:
                client.post(path, cast_to=object, body=body)
            assert refused.value.param == name


def test_a_long_prompt_is_told_of_while_it_is_read(client: openai.OpenAI):
    with client.responses.stream(model="demo", input="3 + 3 " * 300, max_output_tokens=3) as stream:
        events = list(stream)
    beats = [event for event in events if getattr(event, "progress", None)]
    assert len(beats) > 1 and {beat.type for beat in beats} == {"response.in_progress"}
    assert events[-1].type == "response.incomplete"


def test_a_response_can_be_had_again_and_be_forgotten(client: openai.OpenAI):
    first = respond(client)
    assert client.responses.retrieve(first.id) == first
    with client.responses.stream(model="demo", input=SUM, previous_response_id=first.id) as stream:
        stream.until_done()
        second = stream.get_final_response()
    assert client.responses.retrieve(second.id).output_text == second.output_text
    client.responses.delete(first.id)
    for gone in (client.responses.retrieve, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="dropped"):
            gone(first.id)
    assert respond(client, previous_response_id=second.id).status == "completed"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(respond(client, store=False).id)


@pytest.mark.parametrize("kind", [{"type": "item_reference"}, {}, {"type": None}])
def test_items_of_stored_responses_can_be_referred_to(client: openai.OpenAI, kind: Any):
    """As the Vercel AI SDK does at every second turn."""
    first = respond(client)
    question: Any = {"role": "user", "content": SUM}
    follow: Any = {"role": "user", "content": "Sure?"}
    references: Any = [kind | {"id": item.id} for item in first.output]
    referred = respond(client, [question, *references, follow], store=False)
    whole = respond(client, "Sure?", previous_response_id=first.id)
    assert referred.usage.input_tokens == whole.usage.input_tokens
    assert referred.output_text == whole.output_text


@pytest.mark.parametrize("id", ["msg_unknown", "rs_0", "x" * 300])
def test_an_item_that_is_not_stored_is_named(client: openai.OpenAI, id: str):
    items: Any = [{"role": "user", "content": SUM}, {"type": "item_reference", "id": id}]
    with pytest.raises(openai.NotFoundError, match=id[:50]) as missing:
        respond(client, items)
    assert missing.value.param == "input"
    unstored = respond(client, store=False)
    items[1] = {"type": "item_reference", "id": unstored.output[0].id}
    with pytest.raises(openai.NotFoundError, match="Send the item itself"):
        respond(client, items)


def test_input_tokens_are_those_of_the_prompt(client: openai.OpenAI):
    first = respond(client)
    for fields in (
        {"input": SUM},
        {"input": [{"role": "user", "content": SUM}, {"role": "system", "content": "Be brief."}]},
        {"input": "Sure?", "previous_response_id": first.id},
        {"input": SUM, "tools": [{"type": "web_search"}], "instructions": "Add."},
    ):
        counted: Any = client.responses.input_tokens.count(model="demo", **fields)  # type: ignore[arg-type]
        used = respond(client, fields.pop("input"), max_output_tokens=1, **fields).usage
        assert counted.input_tokens == used.input_tokens
        assert counted.object == "response.input_tokens"
