"""Completions of raw text and the list of models, asked with OpenAI's own client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.library import locate
from tests.serving import Server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, prompt: Any = "I see a", **options: Any) -> Any:
    options = {"model": "demo", "temperature": 0, "prompt": prompt} | options
    return client.completions.create(**options)


def test_text_goes_on(client: openai.OpenAI):
    completion = complete(client)
    [choice] = completion.choices
    assert choice.text and completion.object == "text_completion"
    assert completion.usage.prompt_tokens == 1 + len(tokenizer().encode("I see a"))
    assert completion.usage.completion_tokens <= 16
    streamed = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].text for piece in streamed[:-1]) == choice.text
    assert streamed[-1].choices == [] and streamed[-1].usage == completion.usage.model_copy(
        update={"prompt_tokens_details": streamed[-1].usage.prompt_tokens_details}
    )


def test_a_request_that_names_no_model_is_told_which_one_answered(server: Server):
    for path, body in (
        ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        ("/v1/responses", {"input": "a", "max_output_tokens": 1}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ):
        status, answer = server.post(path, body)
        assert (status, answer["model"]) == (200, "demo"), path


def test_token_ids_are_taken_as_they_are(client: openai.OpenAI):
    ids = [tokenizer().special.bos, *tokenizer().encode("I see a")]
    assert complete(client, ids).choices[0].text == complete(client).choices[0].text
    assert complete(client, ids).usage.prompt_tokens == len(ids)
    with pytest.raises(openai.BadRequestError, match="go from 0 to"):
        complete(client, [10**6])


def test_several_prompts_have_several_completions_each(client: openai.OpenAI):
    prompts = ["I see a", "1 + 1 ="]
    options: dict[str, Any] = {"n": 2, "max_tokens": 4, "seed": 5, "temperature": 1}
    completion = complete(client, prompts, **options)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert [choice.seed for choice in completion.choices] == [5, 6, 5, 6]
    alone = complete(client, prompts[1], **options)
    assert [c.text for c in completion.choices[2:]] == [c.text for c in alone.choices]
    texts = dict.fromkeys(range(4), "")
    for piece in complete(client, prompts, stream=True, **options):
        for choice in piece.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == [choice.text for choice in completion.choices]


def test_an_echo_comes_before_the_text(client: openai.OpenAI):
    text = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == "I see a" + text
    assert "".join(piece.choices[0].text for piece in complete(client, echo=True, stream=True)) == (
        "I see a" + text
    )


def test_an_echo_with_log_probabilities_has_those_of_the_prompt(client: openai.OpenAI):
    prompts: list[Any] = ["I see a — naïve 猫", [1, *tokenizer().encode("1 + 1 ="), 2, 1050]]
    for prompt in prompts:
        ids = prompt if isinstance(prompt, list) else [1, *tokenizer().encode(prompt)]
        text = tokenizer().decode(ids)
        complete(client, prompt)  # whose prefix is cached now
        completion = complete(client, prompt, echo=True, logprobs=1, max_tokens=3)
        [choice] = completion.choices
        found = choice.logprobs
        assert choice.text.startswith(text) and completion.usage.prompt_tokens == len(ids)
        lists = (found.tokens, found.token_logprobs, found.top_logprobs, found.text_offset)
        written = completion.usage.completion_tokens
        assert {len(values) for values in lists} == {len(ids) + written}
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        assert all(
            len(top) == 1 and max(top.values()) >= p <= 0
            for top, p in zip(found.top_logprobs[1:], found.token_logprobs[1:], strict=True)
        )
        for token, offset in zip(found.tokens, found.text_offset, strict=True):
            assert "\ufffd" in token or choice.text[offset:].startswith(token)


def test_a_prompt_alone_is_scored(client: openai.OpenAI):
    options: dict[str, Any] = {"echo": True, "max_tokens": 0}
    prompts = ["I see a", "1 + 1 = 2"]
    completion = complete(client, prompts, logprobs=5, **options)
    assert [choice.text for choice in completion.choices] == prompts
    assert {choice.finish_reason for choice in completion.choices} == {"length"}
    assert completion.usage.completion_tokens == 0
    assert completion.usage.prompt_tokens == sum(
        len(choice.logprobs.tokens) for choice in completion.choices
    )
    assert complete(client, prompts, **options).choices[1].logprobs is None
    streamed = [
        choice
        for piece in complete(client, prompts, logprobs=5, stream=True, n=2, **options)
        for choice in piece.choices
    ]
    for index in range(4):
        pieces = [choice for choice in streamed if choice.index == index]
        assert "".join(piece.text for piece in pieces) == prompts[index // 2]
        [scored] = [piece.logprobs for piece in pieces if piece.logprobs and piece.logprobs.tokens]
        assert scored == completion.choices[index // 2].logprobs


def test_log_probabilities_have_the_old_shape(client: openai.OpenAI):
    choice = complete(client, logprobs=2).choices[0]
    found = choice.logprobs
    assert "".join(found.tokens) == choice.text
    assert found.text_offset == [sum(map(len, found.tokens[:n])) for n in range(len(found.tokens))]
    assert all(
        len(top) == 2 and max(top.values()) >= p
        for top, p in zip(found.top_logprobs, found.token_logprobs, strict=True)
    )


@pytest.mark.parametrize("more", [{}, {"logprobs": 1}, {"echo": True}], ids=str)
def test_token_ids_are_told_if_asked_for(client: openai.OpenAI, more: dict[str, Any]):
    prompts = ["I see a", "1 + 1 ="]
    options: dict[str, Any] = {"n": 2, "extra_body": {"return_token_ids": True}, **more}
    completion = complete(client, prompts, **options)
    decode = tokenizer().decode
    for choice in completion.choices:
        prompt = prompts[choice.index // 2]
        assert choice.prompt_token_ids == [1, *tokenizer().encode(prompt)]
        assert decode(choice.token_ids) == choice.text.removeprefix(
            prompt if more.get("echo") else ""
        )
        assert (choice.logprobs is None) == ("logprobs" not in more)
    assert sum(len(c.token_ids) for c in completion.choices) == completion.usage.completion_tokens
    told: list[dict[str, list[int]]] = [{"prompt": [], "ids": []} for _ in range(4)]
    for piece in complete(client, prompts, stream=True, **options):
        for choice in piece.choices:
            told[choice.index]["prompt"] += getattr(choice, "prompt_token_ids", [])
            told[choice.index]["ids"] += getattr(choice, "token_ids", [])
    assert told == [{"prompt": c.prompt_token_ids, "ids": c.token_ids} for c in completion.choices]
    assert not hasattr(complete(client).choices[0], "token_ids")


def test_a_stop_text_ends_it(client: openai.OpenAI):
    text = complete(client, max_tokens=16).choices[0].text
    stop = text[3:5]
    stopped = complete(client, max_tokens=16, stop=stop).choices[0]
    assert (stopped.text, stopped.finish_reason) == (text[: text.index(stop)], "stop")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -2, "echo": True}, "max_tokens"),
        ({"echo": True, "logprobs": 21}, "logprobs"),
        ({"prompt": ["a"] * 100, "n": 2}, "prompt"),
        ({"prompt": []}, "prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_not_supported_is_refused_in_words(
    client: openai.OpenAI, options: dict[str, Any], param: str
):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, **options)
    assert refused.value.param == param


def test_the_models_are_listed(client: openai.OpenAI):
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "magistral-mlx")
    assert client.models.retrieve("demo") == model
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("mistralai/nothing")
    assert missing.value.code == "model_not_found"


def tokenizer() -> Tokenizer:
    return Tokenizer.load(locate("demo"))
