"""Events as answers of each API, where a real model would not bring them about."""

import json
import math
from collections.abc import Iterable
from typing import Any

import pytest

from magistral_mlx.events import (
    Event,
    Finished,
    FinishReason,
    MalformedCall,
    Notice,
    Prefill,
    Stats,
    Text,
    Thinking,
    TokenLogprob,
    ToolCall,
    ToolCallPart,
    TurnsDropped,
)
from magistral_mlx.server.anthropic.message_format import MessageFormatter, stop_reason
from magistral_mlx.server.blocks import BlockReader, SampleEnd, SampleOutput
from magistral_mlx.server.openai.chat_format import ChatFormatter
from magistral_mlx.server.openai.usage import logprobs_of
from magistral_mlx.server.request_translation import (
    MessageBuilder,
    continue_last,
    image_part,
    text_part,
)

STATS = Stats(100, 3, 7, 0.5, 1.0, 0.5, 0, cached_tokens=60)


def end(reason: FinishReason = "stop", stopped_by: str | None = None) -> Finished:
    return Finished(reason, STATS, stopped_by)


def written(formatter: Any, events: Iterable[Event]) -> list[dict[str, Any]]:
    """What a formatter writes into a stream."""
    reader = BlockReader()
    blocks = [block for event in events for block in reader.feed(event)]
    sent = [body for block in blocks for body in formatter.write(block)]
    return [body.model_dump(exclude_unset=True) for body in sent]


def sample_of(events: Iterable[Event]) -> SampleOutput:
    reader = BlockReader()
    blocks = [block for event in events for block in reader.feed(event)]
    [sample] = [block.sample for block in blocks if isinstance(block, SampleEnd)]
    return sample


def choice_of(*events: Event) -> dict[str, Any]:
    completion = ChatFormatter("m", 1, 1).whole([sample_of(events)])
    return completion.model_dump(exclude_unset=True)["choices"][0]


def chunks_of(*events: Event) -> list[dict[str, Any]]:
    return [chunk["choices"][0] for chunk in written(ChatFormatter("m", 1, 1), events)]


def message_events(*events: Event) -> list[dict[str, Any]]:
    return written(MessageFormatter("m", 200), events)


@pytest.mark.parametrize(
    ("reason", "word"), [("memory", "no memory"), ("cancelled", "stopped by the server")]
)
def test_an_end_that_openai_has_no_word_for_is_a_length_with_a_note(reason: Any, word: str):
    choice = choice_of(Text("So"), end(reason))
    assert choice["finish_reason"] == "length" and word in choice["notes"][0]
    [*_, last] = chunks_of(Text("So"), end(reason))
    assert last["finish_reason"] == "length" and last["notes"] == choice["notes"]


def test_what_a_person_should_know_is_noted():
    choice = choice_of(TurnsDropped(2, 5), Notice("Long."), Text("So"), end())
    assert choice["notes"] == [
        "The oldest 2 turns were left out: the context could not hold them.",
        "Long.",
    ]
    assert "notes" not in choice_of(Text("So"), end())


def test_a_call_that_is_none_becomes_text_with_a_note():
    events = (MalformedCall("[TOOL_CALLS]f", "it has no arguments"), end())
    choice = choice_of(*events)
    assert choice["message"]["content"] == "f" and choice["finish_reason"] == "stop"
    assert choice["notes"] == ["What the model wrote as a tool call is none: it has no arguments."]
    assert [chunk["delta"].get("content") for chunk in chunks_of(*events)[1:]] == [
        "f",
        None,
    ]


def test_a_call_that_was_streamed_and_is_none_is_not_told_again():
    events = (ToolCallPart(0, "f", "", "a"), ToolCallPart(0, "f", "{"), MalformedCall("…", "cut"))
    deltas = [chunk["delta"] for chunk in chunks_of(*events, end("length"))]
    assert sum("tool_calls" in delta for delta in deltas) == 2
    assert not any(delta.get("content") for delta in deltas)


@pytest.mark.parametrize(
    "written",
    [
        "[TOOL_CALLS]f[CALL_ID]x",
        '[TOOL_CALLS][{"name": "f", "argu',
        "[TOOL_CALLS]f g[ARGS]{}",
        "[TOOL_CALLS]",
    ],
)
def test_no_mark_of_a_call_is_content(written: str):
    events = (Text("So. "), MalformedCall(written, "cut short"), end("length"))
    choice = choice_of(*events)
    streamed = [chunk["delta"].get("content") or "" for chunk in chunks_of(*events)]
    content = choice["message"]["content"]
    assert content == "".join(streamed) and content.startswith("So. ")
    assert not any(mark in content for mark in ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"))


@pytest.mark.parametrize("cut", ["", "{", '{"a": 1, "b": [2', "{'a'"])
def test_a_call_that_was_cut_short_is_the_same_whole_and_streamed(cut: str):
    parts = [ToolCallPart(0, "f", piece, "a") for piece in ("", *cut)]
    events = (*parts, MalformedCall("[TOOL_CALLS]f[ARGS]" + cut, "cut short"), end("length"))
    choice = choice_of(*events)
    assert choice["finish_reason"] == "length" and choice["message"]["content"] is None
    [call] = choice["message"]["tool_calls"]
    assert (call["id"], call["function"]) == ("a", {"name": "f", "arguments": cut})
    deltas = [chunk["delta"].get("tool_calls", [{}])[0] for chunk in chunks_of(*events)]
    assert "".join(delta["function"]["arguments"] for delta in deltas if delta) == cut
    [block] = MessageFormatter("m", 200).whole(sample_of(events)).content
    expected = {"a": 1, "b": [2]} if cut.startswith('{"a"') else {}
    assert block.type == "tool_use" and block.input == expected


def test_calls_that_come_whole_are_streamed_and_counted_on():
    deltas = [
        chunk["delta"]
        for chunk in chunks_of(ToolCall("f", "{}", "a"), ToolCall("g", '{"x":1}', "b"), end())
    ]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    names = {call["index"]: call["function"]["name"] for call in calls if "id" in call}
    arguments = dict.fromkeys(names, "")
    for call in calls:
        arguments[call["index"]] += call["function"]["arguments"]
    assert names == {0: "f", 1: "g"} and arguments == {0: "{}", 1: '{"x":1}'}


def test_tokens_without_text_have_no_log_probability():
    found = logprobs_of([TokenLogprob(2, b"", -1.0), TokenLogprob(9, b"\xc3", -0.5)])
    assert [(token.token, token.bytes) for token in found.content] == [("�", [0xC3])]


def test_an_impossible_token_has_a_log_probability_that_json_can_hold():
    found = logprobs_of([TokenLogprob(9, b"a", -math.inf, ((8, b"b", -math.inf),))])
    assert found.content[0].logprob == found.content[0].top_logprobs[0].logprob == -9999


# Anthropic's API


@pytest.mark.parametrize(
    ("finished", "called", "context", "expected"),
    [
        (end(), False, 200, ("end_turn", None)),
        (end(), True, 200, ("tool_use", None)),
        (end(stopped_by="x"), False, 200, ("stop_sequence", "x")),
        (end("length"), False, 200, ("max_tokens", None)),
        (end("length"), False, 110, ("model_context_window_exceeded", None)),
        (end("memory"), False, 200, ("max_tokens", None)),
    ],
)
def test_why_a_message_ended(finished: Finished, called: bool, context: int, expected: Any):
    assert stop_reason(finished, called, context) == expected


def test_blocks_follow_each_other_with_an_index_each():
    sent = message_events(
        Prefill(0, 100),
        Thinking("hm"),
        Text("So: "),
        ToolCallPart(0, "f", "", "a"),
        ToolCallPart(0, "f", "{}"),
        ToolCall("f", "{}", "a"),
        ToolCall("g", '{"x":1}', "b"),
        end(),
    )
    starts = [event for event in sent if event["type"] == "content_block_start"]
    assert [(event["index"], event["content_block"]["type"]) for event in starts] == [
        (0, "thinking"),
        (1, "text"),
        (2, "tool_use"),
        (3, "tool_use"),
    ]
    stops = [event["index"] for event in sent if event["type"] == "content_block_stop"]
    assert stops == [0, 1, 2, 3]
    pieces = [event["delta"].get("partial_json") for event in sent if event.get("delta")]
    assert [json.loads(piece) for piece in pieces if piece] == [{}, {"x": 1}]
    assert sent[0]["message"]["usage"]["input_tokens"] == 100
    [*_, delta, stop] = sent
    assert delta["delta"]["stop_reason"] == "tool_use" and stop == {"type": "message_stop"}


def test_tokens_that_were_in_the_cache_are_counted_apart():
    message = MessageFormatter("m", 200).whole(sample_of([Text("So"), end()]))
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (40, 60)


# Conversations that come in pieces


def test_a_turn_of_the_model_is_put_together_from_its_pieces():
    builder = MessageBuilder()
    builder.system("Be brief.")
    builder.user("Go")
    builder.thinking("h")
    builder.thinking("m")
    builder.text("So: ")
    builder.call("f", "{}", "a")
    builder.result([text_part("1")], "a")
    builder.thinking("aha")
    builder.call("g", "{}", "b")
    first, second = [turn for turn in builder.messages() if turn["role"] == "assistant"]
    assert (first["reasoning_content"], first["content"]) == ("hm", "So: ")
    assert [call["id"] for call in first["tool_calls"]] == ["a"]
    assert second["reasoning_content"] == "aha" and second["tool_calls"][0]["id"] == "b"
    assert [turn["role"] for turn in builder.messages()] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_images_that_tools_returned_are_shown_after_all_results():
    builder = MessageBuilder()
    builder.call("f", "{}", "a")
    builder.call("f", "{}", "b")
    builder.result([image_part("data:1")], "a")
    builder.result([text_part("two"), image_part("data:2")], "b")
    builder.user("And?")
    _, one, two, user = builder.messages()
    assert [part["text"] for part in one["content"]] == ["(see the image)"]
    assert [part["text"] for part in two["content"]] == ["two"]
    assert user["content"] == [image_part("data:1"), image_part("data:2"), text_part("And?")]


def test_thinking_without_an_answer_is_kept():
    builder = MessageBuilder()
    builder.thinking("hm")
    builder.user("And?")
    assert builder.messages()[0] == {"role": "assistant", "content": "", "reasoning_content": "hm"}


def test_a_last_turn_of_the_model_is_continue_last():
    said = {"role": "assistant", "content": "1"}
    assert continue_last([said]) == [said | {"prefix": True}]
    for other in (said | {"prefix": False}, said | {"tool_calls": [{}]}, {"role": "user"}):
        assert continue_last([other]) == [other]
    assert continue_last([]) == []
