"""The options of an answer: one declaration each, and what becomes of a wrong value."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from pydantic import BaseModel

from magistral_mlx import DEFAULT, InvalidOption, Options, System, Tool
from magistral_mlx.api.option_fields import OptionFields
from magistral_mlx.option_spec import spec_of
from magistral_mlx.server.openai.chat_schemas import ChatRequest


def test_keywords_of_type_checkers_are_the_options():
    keywords = {name: ref.__forward_arg__ for name, ref in OptionFields.__annotations__.items()}
    assert keywords == {field.name: field.type for field in fields(Options)}


@pytest.mark.parametrize("name", [field.name for field in fields(Options)])
def test_every_option_says_what_it_does(name: str):
    spec = next(spec_of(field) for field in fields(Options) if field.name == name)
    assert spec is not None
    assert spec.section
    assert spec.help[0].isupper()
    assert spec.help[-1] in ".…"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be 0 (greedy) or more."),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0 (greedy) or more."),
        ({"temperature": float("inf")}, "temperature is inf; it must be 0 (greedy) or more."),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number."),
        ({"temperature": True}, "temperature is True; it must be a number."),
        ({"temperature": None}, "temperature is None; it must be a number."),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1."),
        ({"top_p": 1.1}, "top_p is 1.1; it must be above 0 and at most 1."),
        ({"top_k": -1}, "top_k is -1; it must be 0 (off) or more."),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number."),
        ({"min_p": 1.5}, "min_p is 1.5; it must be from 0 (off) to 1."),
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be above 0; 1 is off."),
        ({"repetition_window": 0}, "repetition_window is 0; it must be 1 or more."),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1; it must be from -2 to 2; 0 is off."),
        ({"frequency_penalty": -3}, "frequency_penalty is -3; it must be from -2 to 2; 0 is off."),
        ({"seed": -1}, "seed is -1; it must be from 0 to 4294967295."),
        ({"seed": 2**32}, "seed is 4294967296; it must be from 0 to 4294967295."),
        (
            {"max_tokens": 0},
            "max_tokens is 0; it must be 1 or more, unless prompt_logprobs are asked for.",
        ),
        ({"n": 0}, "n is 0; it must be 1 or more."),
        ({"n": None}, "n is None; it must be a whole number."),
        ({"image_tokens": 1}, "image_tokens is 1; it must be 2 or more."),
        ({"top_logprobs": 21}, "top_logprobs is 21; it must be from 0 to 20."),
        ({"logprobs": 5}, "logprobs is 5; it must be True or False."),
        ({"keep_thinking": "no"}, "keep_thinking is 'no'; it must be True or False."),
        ({"overflow": "wrap"}, "overflow is 'wrap'; it must be 'error' or 'drop'."),
        ({"speculation": "x"}, "speculation is 'x'; it must be one of auto, off, ngram, draft."),
        ({"stop": ""}, "stop is ('',); it must be a list of texts, none of them empty."),
        ({"stop": 5}, "stop is 5; it must be a list."),
        ({"choice": "yes"}, "choice is 'yes'; it must be a list."),
        ({"choice": [1]}, "choice is [1]; it must be a list of one text or more, none of them"),
        ({"choice": []}, "choice is []; it must be a list of one text or more, none of them"),
        ({"choice": ["a", ""]}, "choice is ['a', '']; it must be a list of one text or more"),
        ({"stop_token_ids": ["x"]}, "stop_token_ids is ['x']; it must be a list of token ids."),
        ({"stop_token_ids": [-1]}, "stop_token_ids is [-1]; it must be a list of token ids."),
        ({"stop_token_ids": 5}, "stop_token_ids is 5; it must be a list."),
        ({"logit_bias": {"x": 1}}, "logit_bias is {'x': 1}; it must be a mapping of token ids to"),
        ({"logit_bias": [1]}, "logit_bias is [1]; it must be a mapping of token ids to numbers"),
        ({"logit_bias": {3: 101}}, "logit_bias holds 101.0 for token 3; it must be a mapping of"),
        ({"logit_bias": {-3: 1}}, "logit_bias holds 1.0 for token -3; it must be a mapping of"),
        ({"thinking": "maybe"}, 'thinking is \'maybe\'; it must be "on", "off", or a number of'),
        ({"thinking": 0}, 'thinking is 0; it must be "on", "off", or a number of tokens of 1'),
        ({"thinking": 5, "min_thinking": 6}, "min_thinking is 6, more than the 5 tokens"),
        ({"thinking": "off", "min_thinking": 6}, "min_thinking needs thinking, which is off."),
        ({"min_thinking": -1}, "min_thinking is -1; it must be 0 or more."),
        ({"dry": "on"}, "dry is 'on'; it must be True, False or a Dry."),
        ({"tools": 5}, "tools is 5; it must be a list."),
        ({"tool_choice": "required"}, "tool_choice is 'required', but there are no tools."),
        ({"regex": 5}, "regex is 5; it must be text."),
        ({"regex": "a", "choice": ["a"]}, "regex and choice exclude each other: give one."),
        ({"grammar": "a", "regex": "a"}, "regex and grammar exclude each other: give one."),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens is 6, more than the 5 of max_tokens."),
        ({"min_tokens": 6, "choice": ["a"]}, "min_tokens and choice exclude each other"),
        ({"ignore_eos": True, "grammar": "a"}, "ignore_eos and grammar exclude each other"),
        ({"regex": "a", "tools": [Tool("f")]}, "regex and tools exclude each other"),
        ({"json_schema": "{"}, "json_schema is not JSON: "),
        ({"json_schema": "null"}, "json_schema is None; it must be a JSON schema: an object or"),
        ({"json_schema": False}, "json_schema is False; it must be a JSON schema: an object or"),
        ({"json_schema": "[" * 100_000}, "json_schema is nested too deeply to be read."),
        ({"system": 3}, "system is 3; it must be text, a System or None."),
    ],
)
def test_a_wrong_value_is_told_with_what_is_expected(option: dict[str, Any], message: str):
    with pytest.raises(InvalidOption) as error:
        Options(**option)
    assert str(error.value).startswith(message)


class Callback(BaseModel):
    call: Callable[[int], int]


@pytest.mark.parametrize("answer", [Callback, BaseModel])
def test_a_class_without_a_json_schema_is_told(answer: type[BaseModel]):
    with pytest.raises(InvalidOption, match=f"json_schema is {answer.__name__}, a class without"):
        Options(json_schema=answer).schema  # noqa: B018


def test_values_come_into_one_form():
    options = Options(
        stop="END",
        stop_token_ids=[3, 4],
        logit_bias={"7": 1},  # type: ignore[dict-item]
        thinking=False,
        system="Be short.",
        tools={"type": "function", "function": {"name": "f"}},
        repetition_window=None,
    )
    assert options.stop == ("END",)
    assert options.stop_token_ids == frozenset((3, 4))
    assert options.logit_bias == {7: 1.0}
    assert options.thinking == "off"
    assert options.system == System("Be short.")
    assert [tool.name for tool in options.offered_tools] == ["f"]
    assert options.repetition_window is None
    assert (Options(system="").system, Options(logit_bias=None).logit_bias) == (None, {})


def test_options_survive_copies_and_pickles():
    options = Options(temperature=0.5, stop=["a"], thinking=100, tools=[Tool("f")])
    assert pickle.loads(pickle.dumps(options)) == options
    assert copy.deepcopy(options) == options
    assert pickle.loads(pickle.dumps(DEFAULT)) is DEFAULT
    assert copy.copy(DEFAULT) is copy.deepcopy(DEFAULT) is DEFAULT
    assert pickle.loads(pickle.dumps(Options())).system is DEFAULT


def test_the_servers_schema_tells_ranges_and_defaults_of_the_options():
    schema = ChatRequest.model_json_schema()["properties"]
    temperature, top_p = schema["temperature"], schema["top_p"]
    assert temperature["description"] == "Sampling temperature. 0 is greedy. The default is 0.7."
    assert temperature["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 2}
    assert top_p["anyOf"][0] == {"type": "number", "minimum": 0, "maximum": 1}
    assert "The default is 0.95." in top_p["description"]
