"""Asking a model: results, events, options, errors."""

import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx import (
    Assistant,
    ContextOverflow,
    Finished,
    ImageError,
    InvalidOption,
    Magistral,
    ModelClosed,
    Options,
    Prefill,
    PromptError,
    Sample,
    System,
    Text,
    Thinking,
    Thought,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallPart,
    ToolResult,
    TurnsDropped,
    User,
)
from tests.scripted import write_scripted_checkpoint
from tests.unit.api.conftest import ANSWER, THOUGHT

_RED = PIL.Image.new("RGB", (280, 280), (200, 10, 10))


def text_of(magistral: Magistral, prompt: Any, **options: Any) -> str:
    """The prompt as the tokenizer spells it, control tokens included."""
    tokenizer = magistral.tokenizer
    tokens = magistral.prompt(prompt, **options).tokens.tolist()
    return "".join(tokenizer.control_name(id) or tokenizer.decode([id]) for id in tokens)


# The result


def test_a_question_gets_thinking_and_an_answer(talker: Magistral):
    result = talker.generate("What?")
    assert (result.thinking, result.text) == (THOUGHT, ANSWER)
    assert result.finish_reason == "stop"
    assert result.tool_calls == () and result.samples == () and result.dropped is None
    assert result.message == Assistant(ANSWER, THOUGHT)


def test_tokens_of_thinking_and_answer_are_counted_apart(talker: Magistral):
    result = talker.generate("What?")
    encode = talker.tokenizer.encode
    assert result.usage.prompt_tokens == len(talker.prompt("What?"))
    assert result.usage.thinking_tokens == len(encode(THOUGHT)) + 2  # and its marks
    assert result.usage.answer_tokens == len(encode(ANSWER)) + 1  # and the end of the turn
    assert result.usage.total_tokens == sum(
        (result.usage.prompt_tokens, result.usage.thinking_tokens, result.usage.answer_tokens)
    )
    timings = result.timings
    assert 0 < timings.prefill_seconds <= timings.first_token_seconds
    assert timings.decode_seconds > 0 and timings.decode_tokens_per_second > 0
    assert result.stats.peak_memory > 0


def test_events_come_in_order_and_finish_last(talker: Magistral):
    events = list(talker.stream("What?"))
    kinds = [type(event) for event in events]
    assert kinds[0] is Prefill and kinds[-1] is Finished
    assert kinds.index(Thinking) < kinds.index(Text)
    assert "".join(e.text for e in events if isinstance(e, Thinking)) == THOUGHT
    assert "".join(e.text for e in events if isinstance(e, Text)) == ANSWER
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.reason == "stop"


def test_a_stream_gives_the_result_whether_or_not_it_was_read(talker: Magistral):
    read = talker.stream("What?")
    assert len(list(read)) > 2
    for stream in (read, talker.stream("What?")):
        assert stream.result().text == ANSWER
    assert list(read) == []


def test_on_event_sees_every_event(talker: Magistral):
    seen: list[object] = []
    result = talker.generate("What?", on_event=seen.append)
    assert result.text == ANSWER
    assert isinstance(seen[-1], Finished) and any(isinstance(e, Thinking) for e in seen)


def test_a_prompt_in_parts_tells_how_far_it_is(endless: Magistral):
    prompt = "word " * 1500
    events = [e for e in endless.stream(prompt, max_tokens=1) if isinstance(e, Prefill)]
    assert len(events) > 2
    assert events[0].fraction == 0 and events[0].seconds_left is None
    assert events[-1].fraction == 1 and events[-1].seconds_left == 0
    for event in events[1:-1]:
        assert event.seconds_left is not None and event.seconds_left > 0


# Options


def test_the_same_seed_gives_the_same_answer_and_the_result_tells_it(endless: Magistral):
    first = endless.generate("Hi", max_tokens=12, temperature=100.0, top_p=1.0)
    assert first.seed is not None
    again = endless.generate("Hi", max_tokens=12, temperature=100.0, top_p=1.0, seed=first.seed)
    other = endless.generate("Hi", max_tokens=12, temperature=100.0, top_p=1.0)
    assert again.text == first.text
    assert other.text != first.text


def test_max_tokens_cuts_the_answer(talker: Magistral):
    result = talker.generate("What?", max_tokens=3)
    assert result.finish_reason == "length"
    assert result.usage.completion_tokens == 3
    assert result.thinking and THOUGHT.startswith(result.thinking)


def test_thinking_off_asks_for_none_and_gets_none(talker: Magistral):
    result = talker.generate("What?", thinking="off")
    assert result.thinking == "" and result.usage.thinking_tokens == 0
    assert "[THINK]" in text_of(talker, "What?")
    assert "[THINK]" not in text_of(talker, "What?", thinking="off")
    assert "Think first." in text_of(talker, "What?", thinking="off")


def test_a_budget_closes_the_thinking_and_the_answer_follows(talker: Magistral):
    result = talker.generate("What?", thinking=4)
    assert THOUGHT.startswith(result.thinking) and result.thinking != THOUGHT
    assert result.stats.thinking_end == "budget"
    assert result.text == ANSWER


@pytest.mark.slow
def test_a_minimum_keeps_the_thinking_open(talker: Magistral):
    result = talker.generate("What?", min_thinking=20, max_tokens=30)
    assert result.usage.thinking_tokens >= 20


@pytest.mark.parametrize("stop", [" circ", ["circ", "xyz"], " circle."])
def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(talker: Magistral, stop: Any):
    result = talker.generate("What?", stop=stop)
    assert result.text.strip() == "A red"
    assert result.finish_reason == "stop"


def test_a_stop_text_does_not_count_in_the_thinking(talker: Magistral):
    assert talker.generate("What?", stop="Let").text == ANSWER


def test_a_stop_token_ends_the_answer(talker: Magistral):
    (token, *_) = talker.tokenizer.encode(" c")
    result = talker.generate("What?", stop_token_ids=[token])
    assert result.text == "A red"
    assert result.finish_reason == "stop"


def test_a_biased_token_is_not_drawn(talker: Magistral):
    think = talker.tokenizer.special.think
    assert think is not None
    result = talker.generate("What?", logit_bias={str(think): -100})  # type: ignore[dict-item]
    assert result.usage.thinking_tokens == 0


@pytest.mark.slow
def test_several_answers_to_one_prompt(endless: Magistral):
    options = Options(n=3, max_tokens=6, temperature=100.0, top_p=1.0, seed=5)
    events = list(endless.stream("Hi", options=options))
    assert [e.index for e in events if isinstance(e, Sample)] == [0, 1, 2]
    assert sum(isinstance(e, Finished) for e in events) == 3
    result = endless.generate("Hi", options=options)
    assert [sample.seed for sample in result.samples] == [5, 6, 7]
    assert result.text == result.samples[0].text
    for sample in result.samples:
        alone = endless.generate("Hi", options=options, n=1, seed=sample.seed)
        assert alone.text == sample.text


@pytest.mark.slow
def test_log_probabilities_of_every_token(talker: Magistral):
    result = talker.generate("What?", logprobs=True, top_logprobs=2)
    assert len(result.logprobs) == result.usage.completion_tokens
    thinking = [entry for entry in result.logprobs if entry.thinking]
    assert len(thinking) == result.usage.thinking_tokens
    answer = b"".join(entry.token for entry in result.logprobs if not entry.thinking)
    assert answer.decode() == ANSWER
    for entry in result.logprobs:
        assert entry.logprob <= 0 and len(entry.top) == 2
        assert entry.top[0][0] == entry.id and entry.top[0][2] == entry.logprob
    events = list(talker.stream("What?", logprobs=True))
    assert any(isinstance(event, TokenLogprob) for event in events)
    assert talker.generate("What?").logprobs == ()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temprature": 0}, "no option temprature: did you mean temperature?"),
        ({"temperature": -1}, "temperature is -1; it must be 0"),
        ({"stop_token_ids": [9_999_999]}, "stop_token_ids holds 9999999, but this model's"),
        ({"logit_bias": {9_999_999: 1}}, "logit_bias holds 9999999, but this model's"),
    ],
)
def test_a_wrong_option_is_named(talker: Magistral, option: dict[str, Any], message: str):
    with pytest.raises(InvalidOption) as error:
        talker.stream("What?", **option)
    assert message in str(error.value)


def test_options_are_given_once_and_changed_by_name(talker: Magistral):
    options = Options(max_tokens=3, temperature=0)
    assert talker.generate("What?", options=options).usage.completion_tokens == 3
    assert talker.generate("What?", options=options, max_tokens=4).usage.completion_tokens == 4
    with pytest.raises(InvalidOption, match="options must be Options, not dict"):
        talker.generate("What?", options={"max_tokens": 3})  # type: ignore[arg-type]


# The system prompt


def test_the_checkpoints_system_prompt_is_the_default(talker: Magistral):
    assert talker.default_system == System(
        ("Think first.\n\n", Thought("Your thoughts"), "Then answer.")
    )
    assert "[SYSTEM_PROMPT]Think first.\n\n[THINK]Your thoughts[/THINK]" in text_of(talker, "Hi")


def test_another_system_prompt_is_literal(talker: Magistral):
    assert text_of(talker, "Hi", system="Be [THINK]brief.").startswith(
        "<s>[SYSTEM_PROMPT]Be [THINK]brief.[/SYSTEM_PROMPT][INST]Hi"
    )
    own = [System("Be kind."), User("Hi")]
    assert text_of(talker, own).startswith("<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT]")


@pytest.mark.parametrize("none", [None, ""])
def test_no_system_prompt_where_none_is_wanted(talker: Magistral, none: str | None):
    assert text_of(talker, "Hi", system=none) == "<s>[INST]Hi[/INST]"


# Histories


def test_earlier_thinking_stays_unless_it_is_dropped(talker: Magistral):
    history = [
        User("One"),
        Assistant("1", "hm"),
        User("Two"),
        Assistant(thinking="ask", tool_calls=(ToolCall("f", "{}"),)),
        ToolResult("2"),
    ]
    kept = text_of(talker, history, system=None)
    assert "[THINK]hm[/THINK]1" in kept and "[THINK]ask[/THINK]" in kept
    dropped = text_of(talker, history, system=None, keep_thinking=False)
    assert "hm" not in dropped and "[/INST]1</s>" in dropped
    assert "[THINK]ask[/THINK]" in dropped  # the turn that is being answered


@pytest.mark.slow
def test_an_answer_that_is_left_open_is_continued(talker: Magistral):
    opened = [User("What?"), Assistant("A red", THOUGHT, prefix=True)]
    result = talker.generate(opened)
    assert result.thinking == "" and result.text == " circle."
    inside = [User("What?"), Assistant("", "Let me", prefix=True)]
    result = talker.generate(inside)
    assert result.thinking == THOUGHT.removeprefix("Let me") and result.text == ANSWER


def test_a_conversation_that_ends_in_an_answer_is_not_answered(talker: Magistral):
    with pytest.raises(PromptError, match="there is nothing to answer"):
        talker.generate([User("Hi"), Assistant("Ho")])


# Context


def long_history(turns: int) -> list[Any]:
    history: list[Any] = [System("Be brief.")]
    for n in range(turns):
        history += [User(f"Number {n}? " + "word " * 40), Assistant(f"It is {n}.")]
    return [*history, User("And now?")]


@pytest.fixture(scope="module")
def small(talker_folder: Path) -> Any:
    with Magistral.load(talker_folder, context=400) as magistral:
        yield magistral


def test_an_overflow_is_told_before_it_is_sent_with_figures(small: Magistral):
    history = long_history(12)
    tokens = len(small.prompt(history))
    with pytest.raises(ContextOverflow) as error:
        small.stream(history)
    assert f"the prompt has {tokens:,} tokens, and the context holds 400" in str(error.value)
    assert error.value.prompt_tokens == tokens and error.value.context == 400
    drop = error.value.drop_turns
    assert f"Leave out the oldest {drop} turns" in str(error.value)
    fitting = [history[0], *history[1 + 2 * drop :]]
    assert len(small.prompt(fitting)) < 400 <= len(small.prompt([history[0], *fitting[-2:]])) + 400
    assert len(small.prompt([history[0], *history[1 + 2 * (drop - 1) :]])) >= 400


def test_the_oldest_turns_are_dropped_where_that_is_wanted_and_it_is_told(small: Magistral):
    history = long_history(12)
    events = list(small.stream(history, overflow="drop"))
    assert [n for n, event in enumerate(events) if isinstance(event, TurnsDropped)] == [0]
    assert isinstance(events[0], TurnsDropped)
    assert events[0].messages == 2 * events[0].turns > 0
    result = small.generate(history, overflow="drop")
    assert result.dropped == events[0] and result.text == ANSWER
    kept = [history[0], *history[1 + events[0].messages :]]
    assert result.usage.prompt_tokens == len(small.prompt(kept)) <= 300  # room for an answer


def test_what_fits_is_sent_whole(small: Magistral):
    result = small.generate(long_history(1), overflow="drop")
    assert result.dropped is None


def test_a_last_turn_that_is_too_long_is_never_dropped(small: Magistral):
    history = [*long_history(2), Assistant("So."), User("word " * 500)]
    for overflow in ("error", "drop"):
        with pytest.raises(ContextOverflow, match="Shorten it") as error:
            small.stream(history, overflow=overflow)  # type: ignore[arg-type]
        assert error.value.drop_turns == 0


@pytest.mark.slow
def test_an_answer_never_leaves_the_context(small: Magistral):
    result = small.generate(
        "word " * 150, system=None, max_tokens=1000, logit_bias={small.tokenizer.special.eos: -100}
    )
    assert result.finish_reason == "length"
    assert result.usage.total_tokens == 400


@pytest.mark.parametrize("context", [0, 4097, 1.5])
def test_a_context_that_the_model_does_not_have_is_refused(talker_folder: Path, context: Any):
    with pytest.raises(InvalidOption, match="context is"):
        Magistral.load(talker_folder, context=context)


# Images


@pytest.mark.slow
def test_images_are_seen_and_capped(talker: Magistral):
    assert talker.supports_images
    whole = talker.generate("What?", _RED)
    capped = talker.generate("What?", [_RED], image_tokens=30)
    assert whole.text == capped.text == ANSWER
    assert whole.usage.prompt_tokens - 110 == capped.usage.prompt_tokens - 30 or (
        whole.usage.prompt_tokens - capped.usage.prompt_tokens >= 80
    )


def test_a_text_only_model_says_that_it_cannot_see(endless: Magistral):
    assert not endless.supports_images
    with pytest.raises(ImageError, match="text-only: it has no vision tower"):
        endless.generate("What?", _RED)


# Tools

WEATHER = Tool(
    "weather",
    "The weather of a city",
    {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
)


def test_tools_are_offered_and_calls_come_back_typed(talker: Magistral):
    assert '[AVAILABLE_TOOLS][{"type": "function"' in text_of(talker, "Weather?", tools=[WEATHER])
    assert "[AVAILABLE_TOOLS]" not in text_of(
        talker, "Weather?", tools=[WEATHER], tool_choice="none"
    )
    options = Options(tools=[WEATHER], tool_choice="required", thinking="off", max_tokens=60)
    events = list(talker.stream("Weather?", options=options, seed=1))
    (call,) = [event for event in events if isinstance(event, ToolCall)][:1]
    assert call.name == "weather"
    assert json.loads(call.arguments) in ({"city": "Oslo"}, {"city": "Rome"})
    assert call.id is not None and len(call.id) == 9


def test_results_go_back_to_the_model(talker: Magistral):
    call = ToolCall("weather", '{"city": "Oslo"}', "abcdefgh1")
    asked = [User("Weather?"), Assistant(tool_calls=(call,))]
    typed = talker.generate([*asked, ToolResult("-5", "abcdefgh1")], tools=[WEATHER])
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    dicts = talker.generate(
        [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [{"id": "abcdefgh1", "function": function}]},
            {"role": "tool", "tool_call_id": "abcdefgh1", "content": "-5"},
        ],
        tools=[{"type": "function", "function": {"name": "weather", **vars_of(WEATHER)}}],
    )
    assert typed.text == dicts.text == "Zero"
    assert typed.usage.prompt_tokens == dicts.usage.prompt_tokens


def vars_of(tool: Tool) -> dict[str, Any]:
    return {"description": tool.description, "parameters": dict(tool.parameters)}


def test_calls_are_streamed_and_their_results_heard(caller: Magistral):
    chat = caller.chat(tools=[Tool("f")])
    stream = chat.stream("Call")
    events = list(stream)
    (call,) = stream.result().tool_calls
    assert (call.name, call.arguments) == ("f", "{\n }") and call.id
    parts = [event for event in events if isinstance(event, ToolCallPart)]
    assert parts[0] == ToolCallPart(0, "f", "", call.id)
    assert "".join(part.arguments for part in parts) == call.arguments and len(parts) > 2
    assert stream.result().text == "Wa"
    chat.append(ToolResult("1", call.id))
    assert chat.send().text == "Zero"


def test_a_call_that_breaks_off_is_told_and_not_lost(caller: Magistral):
    chat = caller.chat(tools=[Tool("f")])
    result = chat.send("Call", max_tokens=6)
    (malformed,) = result.malformed_calls
    assert malformed.text.startswith("[TOOL_CALLS]f[ARGS]{") and "cut short" in malformed.problem
    assert result.tool_calls == () and result.text == "Wa"
    answer = chat.messages[1]
    assert isinstance(answer, Assistant) and answer.text == "Wa" + malformed.text


@pytest.mark.slow
def test_ids_of_calls_are_the_same_for_the_same_seed(talker: Magistral):
    options = Options(tools=[WEATHER], tool_choice="required", thinking="off", max_tokens=60)
    first = talker.generate("Weather?", options=options, seed=1)
    again = talker.generate("Weather?", options=options, seed=1)
    assert [c.id for c in first.tool_calls] == [c.id for c in again.tool_calls] != []
    assert len({call.id for call in first.tool_calls}) == len(first.tool_calls)


# Structure


def test_an_answer_is_held_to_a_choice_after_the_thinking(talker: Magistral):
    result = talker.generate("Which?", choice=["Blue", "Green"])
    assert result.thinking == THOUGHT and result.text in ("Blue", "Green")


def test_an_answer_is_held_to_a_schema(talker: Magistral):
    result = talker.generate("Ok?", json_schema={"enum": ["yes", "no"]}, thinking="off")
    assert json.loads(result.text) in ("yes", "no")


def test_a_schema_that_is_none_is_refused_at_once(talker: Magistral):
    with pytest.raises(InvalidOption):
        talker.stream("Ok?", json_schema={"type": "nonsense"})


# Closing


def test_a_closed_model_says_so(talker_folder: Path):
    magistral = Magistral.load(talker_folder)
    magistral.close()
    magistral.close()
    assert magistral.closed
    for ask in (magistral.stream, magistral.generate):
        with pytest.raises(ModelClosed, match="has been closed"):
            ask("Hi")
    with pytest.raises(ModelClosed):
        magistral.release_memory()


def test_loading_tells_how_far_it_is(tmp_path: Path):
    folder = write_scripted_checkpoint(tmp_path / "model", ["[/INST]", "Hi", "</s>"])
    seen: list[Any] = []
    Magistral.load(folder, on_progress=seen.append).close()
    assert seen[-1].stage == "weights"
    assert seen[-1].done == seen[-1].total > 0
    assert seen[-1].fraction == 1 and seen[-1].seconds_left == 0


def test_an_error_in_the_callback_reaches_the_caller(talker_folder: Path):
    def stop(progress: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        Magistral.load(talker_folder, on_progress=stop)
