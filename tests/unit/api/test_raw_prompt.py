"""Prompts without the chat's template, and what one answer may call."""

import json
from pathlib import Path

import PIL.Image
import pytest

from magistral_mlx import (
    ContextOverflow,
    Finished,
    Magistral,
    PromptError,
    RawPrompt,
    Tool,
    ToolCall,
)
from tests.scripted import write_scripted_checkpoint
from tests.unit.api.conftest import ANSWER, THOUGHT

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def test_raw_text_follows_the_first_token_and_nothing_else(talker: Magistral):
    tokenizer = talker.tokenizer
    tokens = talker.prompt(RawPrompt("[INST]What?")).tokens.tolist()
    assert tokens == [tokenizer.special.bos, *tokenizer.encode("[INST]What?")]


def test_raw_token_ids_are_sent_as_they_are(talker: Magistral):
    ids = tuple(talker.prompt("What?").tokens.tolist())
    assert tuple(talker.prompt(RawPrompt(ids)).tokens) == ids
    result = talker.generate(RawPrompt(ids))
    assert (result.thinking, result.text) == (THOUGHT, ANSWER)


def test_raw_token_ids_that_end_inside_a_trace_go_on_with_it(talker: Magistral):
    think = talker.tokenizer.special.think
    ids = (*talker.prompt("What?").tokens.tolist(), think)
    assert talker.generate(RawPrompt(ids)).thinking == THOUGHT


def test_a_raw_prompt_that_is_none_is_refused(talker: Magistral):
    image = talker.tokenizer.special.image
    for raw, problem in (
        (RawPrompt(()), "no tokens"),
        (RawPrompt((1, 10**7)), "go from 0 to"),
        (RawPrompt((1, image)), "stands for an image"),
        (RawPrompt("a\ud800"), "the prompt is not Unicode text"),
    ):
        with pytest.raises(PromptError, match=problem):
            talker.generate(raw)
    with pytest.raises(PromptError, match="no place for images"):
        talker.generate(RawPrompt("a"), images=[PIL.Image.new("RGB", (8, 8))])
    with pytest.raises(PromptError, match="no message"):
        talker.chat(RawPrompt("a"))
    with pytest.raises(ContextOverflow):
        talker.generate(RawPrompt("a b c " * 5000))


def test_the_end_tells_which_stop_text_came(talker: Magistral):
    *_, end = talker.stream("What?", stop=["blue", " circle"])
    assert isinstance(end, Finished) and (end.reason, end.stopped_by) == ("stop", " circle")
    *_, end = talker.stream("What?")
    assert isinstance(end, Finished) and end.stopped_by is None


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory):
    """Calls f({}) again and again."""
    folder: Path = write_scripted_checkpoint(
        tmp_path_factory.mktemp("api") / "eager",
        ["[/INST]", "[TOOL_CALLS]", "f", "[ARGS]", "{\n }", "[TOOL_CALLS]"],
    )
    with Magistral.load(folder) as magistral:
        yield magistral


def test_without_parallel_tool_calls_one_call_ends_the_answer(eager: Magistral):
    tool = Tool("f", parameters=_NOTHING)
    many = eager.generate("Go", tools=[tool], temperature=0, max_tokens=40)
    assert len(many.tool_calls) > 1
    one = eager.generate(
        "Go", tools=[tool], temperature=0, max_tokens=40, parallel_tool_calls=False
    )
    assert [(call.name, json.loads(call.arguments)) for call in one.tool_calls] == [("f", {})]
    assert one.finish_reason == "stop"


@pytest.mark.slow
def test_tools_may_be_called_where_the_answer_has_a_schema(eager: Magistral, talker: Magistral):
    schema = {"type": "object", "properties": {"colour": {"enum": ["red"]}}}
    options = {
        "tools": [Tool("f", parameters=_NOTHING)],
        "json_schema": schema | {"required": ["colour"], "additionalProperties": False},
        "parallel_tool_calls": False,
        "thinking": "off",
        "temperature": 0,
        "max_tokens": 400,
    }
    [call] = eager.generate("Go", **options).tool_calls  # type: ignore[arg-type]
    assert isinstance(call, ToolCall) and call.name == "f"
    no_call = {talker.tokenizer.special.tool_calls: -100}
    answer = talker.generate("Go", logit_bias=no_call, **options)  # type: ignore[arg-type]
    assert json.loads(answer.text) == {"colour": "red"} and not answer.tool_calls
