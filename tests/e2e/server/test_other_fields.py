"""Fields that clients of vLLM, llama-server, OpenRouter and Qwen send: kept to, or refused."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.serving import Server

QUESTION = "What is 3 + 4?"
LETTER = {
    "type": "object",
    "properties": {"letter": {"enum": ["a", "b"]}},
    "required": ["letter"],
    "additionalProperties": False,
}
PETS = 'root ::= "cat" | "dog"'


def answer(server: Server, **fields: Any) -> dict[str, Any]:
    """The choice that answers the question."""
    status, body = server.ask(QUESTION, **({"max_tokens": 60} | fields))
    assert status == 200, body
    return body["choices"][0]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object", "schema": LETTER}},
        {"json_schema": LETTER},
        {"guided_json": LETTER},
        {"guided_json": json.dumps(LETTER)},
        {"structured_outputs": {"json": LETTER}},
    ],
    ids=["json_object", "json_schema", "guided_json", "text", "structured_outputs"],
)
def test_a_schema_is_kept_to_however_it_is_sent(server: Server, fields: dict[str, Any]):
    bias = {"1032": -100, "1010": -100}  # of blanks and lines, in which this model gets lost
    content = answer(server, **fields, logit_bias=bias, max_tokens=300)["message"]["content"]
    assert re.match(r'\{\s*"letter"', content), content


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"guided_regex": "[xyz]{3}"}, "[xyz]{3}"),
        ({"structured_outputs": {"regex": "[xyz]{3}"}}, "[xyz]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"grammar": PETS}, "cat|dog"),
        ({"guided_grammar": 'start: "cat" | "dog"'}, "cat|dog"),
        ({"structured_outputs": {"grammar": PETS}}, "cat|dog"),
        ({"guided_regex": "[xyz]", "regex": "[xyz]"}, "[xyz]"),
    ],
)
def test_other_forms_are_kept_to(server: Server, fields: dict[str, Any], form: str):
    assert re.fullmatch(form, answer(server, **fields)["message"]["content"])


def test_a_completion_is_held_to_a_form_as_well(server: Server):
    body = {"prompt": "2 + 2 =", "guided_choice": ["four", "five"], "temperature": 0}
    assert server.post("/v1/completions", body)[1]["choices"][0]["text"] in ("four", "five")


def test_the_length_is_what_was_asked_for(server: Server):
    whole = answer(server)
    assert whole["finish_reason"] == "stop"
    status, body = server.ask(QUESTION, min_tokens=40, max_tokens=60)
    assert status == 200 and body["usage"]["completion_tokens"] >= 40
    status, body = server.ask(QUESTION, ignore_eos=True, max_tokens=50)
    assert status == 200 and body["usage"]["completion_tokens"] == 50
    assert body["choices"][0]["finish_reason"] == "length"


def test_what_stopped_an_answer_is_shown_if_asked_for(server: Server):
    text = answer(server)["message"]["content"]
    assert answer(server, stop=text)["message"]["content"] == ""
    shown = answer(server, stop=text, include_stop_str_in_output=True)
    assert (shown["message"]["content"], shown["finish_reason"]) == (text, "stop")


def test_a_stop_token_ends_the_answer(server: Server):
    tokens = server.service.registry.first
    assert tokens.magistral is not None
    ids = tokens.magistral.tokenizer.encode("=")
    choice = answer(server, stop_token_ids=ids)
    assert "=" not in choice["message"]["reasoning_content"]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    "fields",
    [
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"chat_template_kwargs": {"thinking": False}},
        {"enable_thinking": False},
        {"reasoning": {"effort": "none"}},
        {"reasoning": {"enabled": False}},
        {"thinking": {"type": "disabled"}},
    ],
    ids=str,
)
def test_thinking_is_left_out_however_that_is_said(server: Server, fields: dict[str, Any]):
    status, body = server.ask(QUESTION, max_tokens=5, **fields)
    assert status == 200
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("fields", [{"include_reasoning": False}, {"reasoning": {"exclude": True}}])
def test_thinking_can_be_hidden(server: Server, fields: dict[str, Any]):
    choice = answer(server, logprobs=True, **fields)
    assert "reasoning_content" not in choice["message"]
    assert choice["message"]["content"] == answer(server)["message"]["content"]
    assert choice["logprobs"]["reasoning_content"] == []
    with server.streaming(QUESTION, **fields) as chunks:
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert not any("reasoning_content" in delta for delta in deltas)


def test_biases_come_as_pairs_too(server: Server):
    given = server.service.registry.first.magistral
    assert given is not None
    seven = given.tokenizer.encode("7")[0]
    assert "7" in answer(server)["message"]["content"]
    for bias in ([[seven, -100]], [[seven, False]], {str(seven): -100}):
        assert "7" not in answer(server, logit_bias=bias)["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"regex": "a", "guided_regex": "b"}, "regex and guided_regex exclude each other"),
        ({"grammar": PETS, "choice": ["a"]}, "exclude each other"),
        ({"grammar": "cat or dog"}, "the grammar cannot be followed"),
        ({"grammar": "root ::= cat"}, "the grammar cannot be followed"),
        ({"structured_outputs": {"structural_tag": {}}}, "structural_tag is not supported"),
        ({"min_tokens": 5, "regex": "a"}, "min_tokens and regex exclude each other"),
        ({"ignore_eos": True, "grammar": PETS}, "ignore_eos and grammar exclude each other"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens is 9, more than the 5 of max_tokens"),
        ({"logit_bias": [["red", 5]]}, "a pair begins with a token id"),
        ({"logit_bias": [5]}, "pairs [id, bias]"),
        ({"typical_p": 0.5}, "typical_p is not supported"),
        ({"mirostat": 2}, "mirostat is not supported"),
        ({"bad_words": ["red"]}, "bad_words is not supported"),
        ({"use_beam_search": True}, "use_beam_search is not supported"),
    ],
    ids=str,
)
def test_what_is_not_kept_to_is_refused(server: Server, fields: dict[str, Any], told: str):
    status, body = server.ask(QUESTION, **fields)
    assert status == 400
    assert told in body["error"]["message"]


def test_values_that_change_nothing_are_taken(server: Server):
    fields = {"typical_p": 1, "mirostat": 0, "xtc_probability": 0.0, "bad_words": []}
    fields |= {"use_beam_search": False, "repeat_last_n": 0, "dry_multiplier": 0}
    assert answer(server, **fields)["message"] == answer(server)["message"]
