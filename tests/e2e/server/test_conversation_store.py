"""What /v1/responses and /v1/conversations keep: items, streams once more, compaction."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import openai
import pytest

from magistral_mlx.server.openai import compaction
from tests.serving import Server

SUM = "What is 37 + 85?"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def respond(client: openai.OpenAI, input: Any = SUM, **fields: Any) -> Any:
    fields = {"model": "demo", "temperature": 0, "extra_body": {"thinking": 30}} | fields
    return client.responses.create(input=input, **fields)


# Stored responses


def test_the_items_before_a_response_are_listed_in_pages(client: openai.OpenAI):
    first = respond(client, instructions="Be brief.")
    second = respond(client, "Sure?", previous_response_id=first.id, max_output_tokens=2)
    [question] = client.responses.input_items.list(first.id).data
    assert (question.type, question.role) == ("message", "user")
    assert question.content[0].type == "input_text" and question.content[0].text == SUM
    everything = list(client.responses.input_items.list(second.id, limit=1, order="asc"))
    assert [item.id for item in everything[:-1]] == [question.id, *(i.id for i in first.output)]
    newest = client.responses.input_items.list(second.id, limit=2)
    assert [item.id for item in newest.data] == [item.id for item in reversed(everything[-2:])]
    assert newest.has_more and not client.responses.input_items.list(first.id).has_more


@pytest.mark.parametrize("summary", [None, "auto"])
def test_a_stored_response_is_streamed_once_more(client: openai.OpenAI, summary: Any):
    reasoning: dict[str, Any] = {"summary": summary} if summary else {}
    live = list(respond(client, stream=True, reasoning=reasoning))
    whole = live[-1].response
    again = list(client.responses.retrieve(whole.id, stream=True))
    assert again[-1].response == whole and again[-1].type == "response.completed"

    def text(events: list[Any], kind: str) -> str:
        return "".join(event.delta for event in events if event.type == kind)

    said = "response.reasoning_summary_text" if summary else "response.reasoning_text"
    for kind in (said + ".delta", "response.output_text.delta"):
        assert text(again, kind) == text(live, kind) != ""
    often = (".delta", ".in_progress")
    order = [event.type for event in live if not event.type.endswith(often)]
    assert [event.type for event in again if not event.type.endswith(often)] == order
    later = list(client.responses.retrieve(whole.id, stream=True, starting_after=4))
    assert later == again[5:]


def test_calls_of_a_stored_response_are_streamed_once_more(client: openai.OpenAI):
    tools: list[Any] = [
        {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": False},
        {"type": "custom", "name": "say", "format": {"type": "text"}},
    ]
    for choice in ({"type": "function", "name": "add"}, {"type": "custom", "name": "say"}):
        fields: dict[str, Any] = {"tools": tools, "tool_choice": choice, "max_output_tokens": 40}
        live = list(respond(client, stream=True, parallel_tool_calls=False, **fields))
        again = list(client.responses.retrieve(live[-1].response.id, stream=True))
        kinds = [list(dict.fromkeys(event.type for event in each)) for each in (live, again)]
        assert kinds[0] == kinds[1]
        assert again[-1].response.output == live[-1].response.output


def test_thinking_handed_back_gives_the_prompt_that_stored_thinking_gives(client: openai.OpenAI):
    stored = respond(client)
    follow = {"role": "user", "content": "Sure?"}
    after = respond(client, [follow], previous_response_id=stored.id, max_output_tokens=1)
    include: Any = ["reasoning.encrypted_content"]
    unstored = respond(client, store=False, include=include)
    items = [{"role": "user", "content": SUM}, *(i.to_dict() for i in unstored.output), follow]
    handed = respond(client, items, store=False, max_output_tokens=1)
    assert handed.usage.input_tokens == after.usage.input_tokens
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


# Conversations


def test_a_conversation_is_continued_and_keeps_both_sides(client: openai.OpenAI):
    conversation = client.conversations.create(metadata={"topic": "sums"})
    first = respond(client, conversation=conversation.id)
    assert first.conversation.id == conversation.id
    second = respond(client, "Sure?", conversation={"id": conversation.id}, store=False)
    kept = list(client.conversations.items.list(conversation.id, order="asc", limit=1))
    kinds = ["message", *(item.type for item in first.output)] * 2
    assert [item.type for item in kept] == kinds[: len(kept)] and len(kept) > 4
    assert [item.id for item in kept[1:3]] == [item.id for item in first.output]
    spelled = [item.model_dump(exclude_unset=True) for item in kept[:-2]]
    same = respond(client, spelled, store=False, max_output_tokens=1)
    assert same.usage.input_tokens == second.usage.input_tokens


def test_items_come_and_go_one_by_one(client: openai.OpenAI):
    conversation = client.conversations.create(items=[{"role": "user", "content": SUM}])
    call: Any = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    search: Any = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {}}
    result: Any = {"type": "function_call_output", "call_id": "a", "output": "1"}
    added = client.conversations.items.create(conversation.id, items=[call, search, result])
    assert [item.type for item in added.data] == [call["type"], search["type"], result["type"]]
    assert added.data[1].id == "ws_1"
    one = client.conversations.items.retrieve(added.data[0].id, conversation_id=conversation.id)
    assert one == added.data[0] and one.call_id == "a"  # type: ignore[union-attr]
    client.conversations.items.delete("ws_1", conversation_id=conversation.id)
    left = client.conversations.items.list(conversation.id, order="asc").data
    assert [item.type for item in left] == ["message", call["type"], result["type"]]
    assert respond(client, "So?", conversation=conversation.id, max_output_tokens=1).usage


def test_a_conversation_can_be_changed_and_deleted(client: openai.OpenAI):
    made = client.conversations.create(items=[])
    assert client.conversations.update(made.id, metadata={"a": "b"}).metadata == {"a": "b"}
    assert client.conversations.retrieve(made.id).metadata == {"a": "b"}
    assert client.conversations.delete(made.id).deleted
    for gone in (
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.items.list(made.id),
        lambda: respond(client, conversation=made.id),
    ):
        with pytest.raises(openai.NotFoundError, match="there is no conversation"):
            gone()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"conversation": "a", "previous_response_id": "b"}, "exclude each other"),
        ({"conversation": 5}, "conversation"),
    ],
)
def test_a_conversation_that_cannot_be_meant_is_refused(
    client: openai.OpenAI, fields: dict[str, Any], why: str
):
    with pytest.raises(openai.BadRequestError, match=why):
        respond(client, **fields)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "order=up", "after=msg_none"])
def test_a_page_that_cannot_be_is_refused(server: Server, client: openai.OpenAI, query: str):
    id = client.conversations.create(items=[]).id
    status, body = server.get(f"/v1/conversations/{id}/items?{query}")
    assert status == 400 and query.split("=")[0] in body["error"]["message"]


# Without new input


def test_what_is_stored_needs_no_new_input(client: openai.OpenAI):
    id = client.conversations.create(items=[{"role": "user", "content": SUM}]).id
    counted: Any = client.responses.input_tokens.count(model="demo", conversation=id)
    first = client.responses.create(model="demo", conversation=id, temperature=0)
    assert first.output_text == "122" and first.usage
    assert first.usage.input_tokens == counted.input_tokens
    kept = client.conversations.items.list(id, order="asc").data
    assert [item.type for item in kept] == ["message", *(item.type for item in first.output)]
    second = respond(client, [], previous_response_id=first.id, max_output_tokens=1)
    assert second.usage.input_tokens > counted.input_tokens


@pytest.mark.parametrize("fields", [{}, {"input": []}, {"instructions": "Be brief."}], ids=str)
def test_an_empty_conversation_is_refused(client: openai.OpenAI, fields: dict[str, Any]):
    empty = client.conversations.create().id
    for ask in (
        client.responses.create,
        client.responses.compact,
        client.responses.input_tokens.count,
        partial(client.responses.create, conversation=empty),
    ):
        with pytest.raises(openai.BadRequestError, match="the conversation is empty") as refused:
            ask(model="demo", **fields)
        assert refused.value.param == "input"


# Compaction


def test_a_compacted_conversation_is_shorter_and_goes_on(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(compaction, "_LONGEST", 30)
    said = {"role": "assistant", "content": "12 + 1 = 13; " * 200}
    conversation: list[Any] = [{"role": "user", "content": SUM}, said]
    compacted = client.responses.compact(model="demo", input=conversation)
    kinds = [item.type for item in compacted.output]
    assert kinds == ["message", "compaction"] and compacted.usage.output_tokens > 0
    short = [item.to_dict(warnings=False) for item in compacted.output]
    follow = {"role": "user", "content": "Sure?"}
    after = respond(client, [*short, follow], max_output_tokens=1)
    before = respond(client, [*conversation, follow], max_output_tokens=1)
    assert after.usage.input_tokens < before.usage.input_tokens
    without = respond(client, [*short[:-1], follow], max_output_tokens=1)
    assert without.usage.input_tokens < after.usage.input_tokens
    stored = respond(client, conversation, max_output_tokens=1).id
    again = client.responses.compact(model="demo", previous_response_id=stored)
    assert [item.type for item in again.output] == kinds
