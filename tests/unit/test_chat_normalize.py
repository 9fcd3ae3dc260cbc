"""Conversations as clients send them, in the form of the template."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from magistral_mlx.chat.messages import Assistant, Message, System, Thought, ToolResult, User
from magistral_mlx.chat.normalize import normalized
from magistral_mlx.chat.prompt import encode
from magistral_mlx.events import ToolCall
from magistral_mlx.runtime.token_events import TokenEvents
from tests.tekken import older_tokenizer, small_tokenizer

CALL = ToolCall("f", "{}", "call_1")
RESULT = ToolResult("1", "call_1")
CALLED = Assistant(tool_calls=(CALL,))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([User("a"), System("s")], [User("a"), User("s")]),
        (
            [System("x"), User("a"), System("s"), Assistant("b"), User("c")],
            [System("x"), User("a"), User("s"), Assistant("b"), User("c")],
        ),
        (
            [User("a"), Assistant("b"), System("s"), User("c")],
            [User("a"), Assistant("b"), User("s"), User("c")],
        ),
        ([User("a"), CALLED, RESULT, System("s")], [User("a"), CALLED, RESULT, User("s")]),
        ([User("a"), CALLED, System("s"), RESULT], [User("a"), CALLED, RESULT, User("s")]),
        (
            [User("a"), CALLED, System("s"), RESULT, Assistant("b"), User("c")],
            [User("a"), CALLED, RESULT, User("s"), Assistant("b"), User("c")],
        ),
        ([System("x"), System("y"), User("a")], [System("x"), System("y"), User("a")]),
        ([User("a"), System(" \n"), System("s ")], [User("a"), User("s")]),
        ([User("a"), System(("s", Thought("t")))], [User("a"), User("s\n\nt")]),
        ([Assistant(), System("s"), User("a")], [System("s"), User("a")]),
    ],
)
def test_a_late_system_message_is_a_users_at_its_place(given: Any, expected: Any):
    assert normalized(given) == expected
    assert normalized(expected) == expected


@pytest.mark.parametrize(
    "late", [[System("s")], [Assistant("b"), System("s")], [Assistant("b"), User("c"), System("s")]]
)
def test_what_stood_before_a_late_system_message_stays_as_it_was(late: list[Message]):
    first = [System("x"), User("a")]
    follow_up = [*first, *late, Assistant("z"), User("d")]
    tokens = [encode(each, small_tokenizer()).tokens.tolist() for each in (first, follow_up)]
    before = len(tokens[0]) - 1  # but for the mark that ends the user's turn
    assert tokens[1][:before] == tokens[0][:before]


@pytest.mark.parametrize(
    "empty",
    [
        Assistant(),
        Assistant(" \n"),
        Assistant(thinking=""),
        Assistant("", thinking=" \t"),
        Assistant(prefix=True),
    ],
)
def test_an_empty_turn_of_the_model_is_left_out_wherever_it_stands(empty: Assistant):
    assert normalized([User("a"), empty, User("b")]) == [User("a"), User("b")]
    assert normalized([User("a"), empty]) == [User("a")]
    assert normalized([User("a"), CALLED, RESULT, empty]) == [User("a"), CALLED, RESULT]


@pytest.mark.parametrize("blank", ["", " ", "\n\n"])
def test_blank_thinking_is_none(blank: str):
    given = [User("a"), Assistant("b", thinking=blank), User("c")]
    assert normalized(given) == [User("a"), Assistant("b"), User("c")]
    kept = Assistant("b", thinking="hm")
    assert normalized([kept, User("c")]) == [kept, User("c")]


@pytest.mark.parametrize("arguments", ['{"a": 1', "", "null", "[]", "{'a': 1}", '{"a": 1,}'])
def test_a_call_that_was_cut_short_is_kept_with_its_result_only(arguments: str):
    cut = Assistant("So", tool_calls=(ToolCall("f", arguments, "x"),))
    answered = [User("a"), cut, ToolResult("1", "x"), User("b")]
    assert normalized(answered) == answered
    assert len(encode(answered, small_tokenizer())) > 0
    expected = cut if arguments == "" else Assistant("So")
    assert normalized([User("a"), cut, User("b")]) == [User("a"), expected, User("b")]


@pytest.mark.parametrize("version", ["v7", "v11"])
@pytest.mark.parametrize("id", ["call_1", "toolu_01ABCDEFGHIJKLMNOP", "x", "a-b c/9", "Zürich123"])
def test_ids_of_any_client_pair_calls_with_results(version: str, id: str):
    tokenizer = older_tokenizer(version)

    def tokens(id: str, result: str) -> int:
        calls = (ToolCall("f", "{}", id), ToolCall("g", "{}", "other"))
        messages = [User("a"), Assistant(tool_calls=calls)]
        return len(encode([*messages, ToolResult("1", result), ToolResult("2")], tokenizer))

    assert tokens(id, id) > 0
    assert encode(
        [User("a"), Assistant(tool_calls=(ToolCall("f", "{}", "abcDEF123"),)), ToolResult("1")],
        tokenizer,
    ).tokens.tolist() == (
        encode(
            [
                User("a"),
                Assistant(tool_calls=(ToolCall("f", "{}", "abcDEF123"),)),
                ToolResult("1", "abcDEF123"),
            ],
            tokenizer,
        ).tokens.tolist()
    )


@pytest.mark.parametrize(("parallel", "names"), [(True, ["f", "g"]), (False, ["f"])])
def test_surplus_calls_of_an_older_model_are_dropped(parallel: bool, names: list[str]):
    tokenizer = older_tokenizer("v7")
    inputs = SimpleNamespace(
        tokenizer=tokenizer,
        prompt=encode([User("a")], tokenizer),
        stop=(),
        include_stop=False,
        hidden_stops=frozenset(),
        parallel_calls=parallel,
    )
    events = TokenEvents(cast(Any, inputs), seed=0)
    calls = '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]'
    special = tokenizer.special
    assert special.tool_calls is not None
    written = [special.tool_calls, *tokenizer.encode(calls), special.eos]
    found = [
        event
        for id in written
        for event in events.feed(cast(Any, SimpleNamespace(id=id, logprob=None, top=())))
    ]
    assert [event.name for event in found if isinstance(event, ToolCall)] == names
