"""Token ids into thinking, answer and tool calls."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magistral_mlx.chat.parser import Parser
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.events import MalformedCall, Text, Thinking, ToolCall, ToolCallPart
from tests.languages import TEXTS
from tests.tekken import older_tokenizer, small_tokenizer

MARKS = {
    "[THINK]": "think",
    "[/THINK]": "end_think",
    "[TOOL_CALLS]": "tool_calls",
    "[CALL_ID]": "call_id",
    "[ARGS]": "args",
    "</s>": "eos",
    "[IMG]": "image",
    "<s>": "bos",
}


def tokens_of(*pieces: str, tokenizer: Tokenizer | None = None) -> list[int]:
    """Ids of `pieces`; one that is exactly a mark becomes its control token."""
    tokenizer = tokenizer or small_tokenizer()
    tokens: list[int] = []
    for piece in pieces:
        mark = MARKS.get(piece)
        tokens += [getattr(tokenizer.special, mark)] if mark else tokenizer.encode(piece)
    return tokens


def parse(tokens: list[int], parser: Parser | None = None) -> list:
    """All events but parts of calls, with neighbouring pieces of one kind joined."""
    parser = parser or Parser(small_tokenizer())
    events = [event for token in tokens for event in parser.feed(token)] + parser.finish()
    joined: list = []
    for event in events:
        if isinstance(event, ToolCallPart):
            continue
        if joined and type(joined[-1]) is type(event) and isinstance(event, Text | Thinking):
            event = type(event)(joined.pop().text + event.text)
        joined.append(event)
    return joined


def test_thinking_and_answer_are_separate():
    assert parse(tokens_of("[THINK]", "7+5=12", "[/THINK]", "12", "</s>")) == [
        Thinking("7+5=12"),
        Text("12"),
    ]


def test_pieces_arrive_with_the_token_that_completes_them():
    parser = Parser(small_tokenizer())
    assert parser.feed(tokens_of("[THINK]")[0]) == []
    assert parser.thinking
    (token,) = tokens_of("a")
    assert parser.feed(token) == [Thinking("a")]
    assert parser.feed(tokens_of("[/THINK]")[0]) == []
    assert not parser.thinking
    assert parser.feed(token) == [Text("a")]


def test_a_generation_that_stops_inside_the_thinking_yields_thinking_only():
    assert parse(tokens_of("[THINK]", "so far")) == [Thinking("so far")]


def test_a_turn_that_ends_inside_the_thinking_yields_thinking_only():
    assert parse(tokens_of("[THINK]", "so far", "</s>")) == [Thinking("so far")]


def test_marks_spelled_as_text_are_text():
    tokens = small_tokenizer().encode("[THINK]no[/THINK][TOOL_CALLS]</s>")
    assert parse(tokens) == [Text("[THINK]no[/THINK][TOOL_CALLS]</s>")]


def test_thinking_may_come_again_after_an_answer():
    assert parse(tokens_of("[THINK]", "a", "[/THINK]", "b", "[THINK]", "c", "[/THINK]", "d")) == [
        Thinking("a"),
        Text("b"),
        Thinking("c"),
        Text("d"),
    ]


def test_a_stray_end_of_thinking_is_ignored():
    assert parse(tokens_of("a", "[/THINK]", "b", "</s>")) == [Text("ab")]


def test_a_second_begin_of_thinking_is_ignored():
    assert parse(tokens_of("[THINK]", "a", "[THINK]", "b", "[/THINK]", "c")) == [
        Thinking("ab"),
        Text("c"),
    ]


def test_a_prompt_that_ends_inside_thinking_starts_there():
    parser = Parser(small_tokenizer(), thinking=True)
    assert parse(tokens_of("hm", "[/THINK]", "Yes."), parser) == [Thinking("hm"), Text("Yes.")]


def test_other_control_tokens_never_reach_the_text():
    assert parse(tokens_of("a", "[IMG]", "b", "<s>", "[ARGS]", "[CALL_ID]", "c")) == [Text("abc")]
    assert parse(tokens_of("[THINK]", "a", "[IMG]", "b")) == [Thinking("ab")]


def test_a_character_cut_off_by_a_mark_stays_on_its_side():
    rocket = tokens_of("🚀")
    tokens = tokens_of("[THINK]") + rocket[:-1] + tokens_of("[/THINK]", "ok")
    assert parse(tokens) == [Thinking("\ufffd"), Text("ok")]


def test_a_character_cut_off_at_the_end_comes_with_finish():
    parser = Parser(small_tokenizer())
    assert [parser.feed(token) for token in tokens_of("🚀")[:-1]] == [[]] * (
        len(tokens_of("🚀")) - 1
    )
    assert parser.finish() == [Text("\ufffd")]
    assert parser.finish() == []


@pytest.mark.parametrize("name", TEXTS)
def test_every_language_survives_in_both_places(name: str):
    text = TEXTS[name]
    assert parse(tokens_of("[THINK]", text, "[/THINK]", text, "</s>")) == [
        Thinking(text),
        Text(text),
    ]


def test_models_without_thinking_tokens_answer_only():
    tokenizer = older_tokenizer("v11")
    tokens = tokens_of("[THINK", "] hello", "</s>", tokenizer=tokenizer)
    assert parse(tokens, Parser(tokenizer)) == [Text("[THINK] hello")]


# Counts


def test_marks_count_as_thinking_and_the_end_as_answer():
    parser = Parser(small_tokenizer())
    parse(tokens_of("[THINK]", "ab", "[/THINK]", "c", "</s>"), parser)
    thinking = 2 + len(tokens_of("ab"))
    assert (parser.thinking_tokens, parser.answer_tokens) == (thinking, len(tokens_of("c")) + 1)


def test_tool_tokens_count_as_answer():
    parser = Parser(small_tokenizer())
    tokens = tokens_of("[TOOL_CALLS]", "f", "[ARGS]", "{}", "</s>")
    parse(tokens, parser)
    assert (parser.thinking_tokens, parser.answer_tokens) == (0, len(tokens))


def test_the_end_of_a_turn_inside_the_thinking_counts_as_answer():
    parser = Parser(small_tokenizer())
    parse(tokens_of("[THINK]", "a", "</s>"), parser)
    assert (parser.thinking_tokens, parser.answer_tokens) == (2, 1)


# Tool calls

ARGUMENTS = '{"city": "Zürich", "days": [1, 2]}'


def test_a_tool_call_carries_its_name_and_arguments_as_written():
    assert parse(tokens_of("[TOOL_CALLS]", "get_weather", "[ARGS]", ARGUMENTS, "</s>")) == [
        ToolCall("get_weather", ARGUMENTS)
    ]


def test_several_calls_in_a_row_after_thinking_and_text():
    tokens = tokens_of(
        *("[THINK]", "look up", "[/THINK]", "One moment."),
        *("[TOOL_CALLS]", "a", "[ARGS]", "{}"),
        *("[TOOL_CALLS]", "b-2", "[CALL_ID]", "abc123xyz", "[ARGS]", '{"x": 1}', "</s>"),
    )
    assert parse(tokens) == [
        Thinking("look up"),
        Text("One moment."),
        ToolCall("a", "{}"),
        ToolCall("b-2", '{"x": 1}', "abc123xyz"),
    ]


def test_a_call_arrives_as_soon_as_the_next_begins():
    parser = Parser(small_tokenizer())
    for token in tokens_of("[TOOL_CALLS]", "a", "[ARGS]", "{}"):
        assert not any(isinstance(event, ToolCall) for event in parser.feed(token))
    assert parser.feed(tokens_of("[TOOL_CALLS]")[0]) == [ToolCall("a", "{}")]


def test_a_call_inside_the_thinking_ends_it():
    assert parse(tokens_of("[THINK]", "hm", "[TOOL_CALLS]", "a", "[ARGS]", "{}")) == [
        Thinking("hm"),
        ToolCall("a", "{}"),
    ]


def test_thinking_after_a_call_ends_the_call():
    assert parse(tokens_of("[TOOL_CALLS]", "a", "[ARGS]", "{}", "[THINK]", "hm")) == [
        ToolCall("a", "{}"),
        Thinking("hm"),
    ]


def test_arguments_are_streamed_as_they_are_written():
    parser = Parser(small_tokenizer())
    tokens = tokens_of("[TOOL_CALLS]", "a", "[ARGS]", "{}")
    tokens += tokens_of("[TOOL_CALLS]", "b", "[ARGS]", ARGUMENTS, "</s>")
    events = [event for token in tokens for event in parser.feed(token)]
    parts = [event for event in events if isinstance(event, ToolCallPart)]
    assert [part for part in parts if not part.arguments] == [
        ToolCallPart(0, "a", ""),
        ToolCallPart(1, "b", ""),
    ]
    assert "".join(part.arguments for part in parts if part.index == 0) == "{}"
    assert "".join(part.arguments for part in parts if part.index == 1) == ARGUMENTS
    assert sum(part.index == 1 for part in parts) > 5
    assert events.index(ToolCall("a", "{}")) < events.index(ToolCallPart(1, "b", ""))


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        (("get_weather", "[ARGS]", '{"city": "Zür'), "are not JSON, or cut short"),
        (("get_weather", "[ARGS]", "[1, 2]"), "are not a JSON object"),
        (("get_weather", "[ARGS]"), "are not JSON, or cut short"),
        (("get_weather",), "it has no arguments"),
        (("get weather!", "[ARGS]", "{}"), "'get weather!' is no name of a function"),
        (("[ARGS]", "{}"), "'' is no name of a function"),
        (("a", "[ARGS]", "{}", "[ARGS]", "{}"), "are not JSON, or cut short"),
        (("a", "[ARGS]", "[" * 5000), "are not JSON, or cut short"),
        ((), "it has no arguments"),
    ],
)
def test_a_malformed_call_comes_back_as_it_was_written_with_the_reason(
    pieces: tuple[str, ...], problem: str
):
    written = "[TOOL_CALLS]" + "".join(pieces)
    for end in (("</s>",), ()):
        (call,) = parse(tokens_of("[TOOL_CALLS]", *pieces, *end))
        assert isinstance(call, MalformedCall)
        assert call.text == written and problem in call.problem


def test_older_models_write_a_list_of_calls():
    tokenizer = older_tokenizer("v7")
    calls = (
        '[{"name": "a", "arguments": {"é": 1}, "id": "abc123xyz"}, {"name": "b", "arguments": {}}]'
    )
    tokens = tokens_of("[TOOL_CALLS]", calls, "</s>", tokenizer=tokenizer)
    assert parse(tokens, Parser(tokenizer)) == [
        ToolCall("a", '{"é": 1}', "abc123xyz"),
        ToolCall("b", "{}"),
    ]


@pytest.mark.parametrize("calls", ['[{"name": "a"}]', "[3]", '{"name": "a"}', "[]"])
def test_a_malformed_list_of_calls_comes_back_as_it_was_written(calls: str):
    (call,) = parse(tokens_of("[TOOL_CALLS]", calls, "</s>"))
    assert isinstance(call, MalformedCall) and call.text == "[TOOL_CALLS]" + calls


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.one_of(st.sampled_from(sorted(MARKS)), st.text(max_size=8)), max_size=12))
def test_nothing_that_was_written_is_lost(pieces: list[str]):
    """Whatever the order of marks: all text arrives, in order, and every token is counted."""
    parser = Parser(small_tokenizer())
    tokens = tokens_of(*pieces)
    events = parse(tokens, parser)
    arrived = "".join(
        event.name + event.arguments if isinstance(event, ToolCall) else event.text
        for event in events
    )
    for mark in ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"):
        arrived = arrived.replace(mark, "")
    written = "".join(piece for piece in pieces if piece not in MARKS)
    for mark in ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"):
        written = written.replace(mark, "")
    assert arrived == written
    assert parser.thinking_tokens + parser.answer_tokens == len(tokens)
