"""Chat completions, asked with OpenAI's own client."""

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from pydantic import BaseModel

from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.demo.cases import make_case
from magistral_mlx.errors import DeviceError
from magistral_mlx.library import locate
from magistral_mlx.server import sse
from magistral_mlx.server.errors import Busy
from magistral_mlx.server.exchange import Exchange
from magistral_mlx.server.settings import Settings
from tests.serving import Server, live_server

SUM: list[Any] = [{"role": "user", "content": "What is 37 + 85?"}]
THOUGHT, ANSWER = "7+5+0=2,1; 3+8+1=2,1; 1", "122"
LONG: list[Any] = [{"role": "user", "content": "1 + 1 " * 300}]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, messages: Any = SUM, **options: Any) -> Any:
    options = {"model": "demo", "temperature": 0, "messages": messages} | options
    return client.chat.completions.create(**options)


# The answer


def test_a_question_is_answered_with_its_thinking_apart(client: openai.OpenAI):
    completion = ask(client)
    [choice] = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", ANSWER)
    assert choice.message.reasoning_content == THOUGHT
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert completion.model == "demo" and completion.id.startswith("chatcmpl-")
    assert completion.system_fingerprint.startswith("mlx_")
    usage = completion.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert choice.timings["decode_tokens_per_second"] > 0


def test_a_stream_brings_the_same_in_pieces(client: openai.OpenAI):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == ANSWER
    thought = [getattr(choice.delta, "reasoning_content", "") for choice in choices]
    assert "".join(thought) == THOUGHT and len([piece for piece in thought if piece]) > 5
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == [] and chunks[-1].usage.prompt_tokens > 0


def test_a_stream_tells_no_usage_unless_asked(client: openai.OpenAI):
    assert all(chunk.usage is None and chunk.choices for chunk in ask(client, stream=True))


def test_several_answers_have_the_seeds_that_follow(client: openai.OpenAI):
    options = {"temperature": 1.5, "max_tokens": 12}
    several = ask(client, n=3, seed=7, **options).choices
    assert [choice.index for choice in several] == [0, 1, 2]
    assert [choice.seed for choice in several] == [7, 8, 9]
    alone = ask(client, seed=several[2].seed, **options).choices[0]
    assert alone.message.reasoning_content == several[2].message.reasoning_content
    chunks = ask(client, n=3, seed=7, stream=True, **options)
    thought = dict.fromkeys(range(3), "")
    for chunk in chunks:
        for choice in chunk.choices:
            thought[choice.index] += getattr(choice.delta, "reasoning_content", "")
    assert list(thought.values()) == [choice.message.reasoning_content for choice in several]


def test_log_probabilities_cover_the_answer_token_by_token(client: openai.OpenAI):
    options = {"logprobs": True, "top_logprobs": 2}
    choice = ask(client, **options).choices[0]
    found = choice.logprobs.content
    assert "".join(token.token for token in found) == ANSWER
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in found)
    assert bytes(found[0].bytes).decode() == found[0].token
    thinking = choice.logprobs.reasoning_content
    assert "".join(token["token"] for token in thinking) == THOUGHT
    streamed = [
        token.token
        for chunk in ask(client, stream=True, **options)
        for choice in chunk.choices
        for token in (choice.logprobs.content if choice.logprobs else ())
    ]
    assert "".join(streamed) == ANSWER


def test_a_length_and_a_stop_text_end_the_answer(client: openai.OpenAI):
    cut = ask(client, max_completion_tokens=5).choices[0]
    assert cut.finish_reason == "length" and cut.message.content == ""
    stopped = ask(client, stop=["22"]).choices[0]
    assert (stopped.finish_reason, stopped.message.content) == ("stop", "1")


def test_fields_that_nobody_knows_are_left_alone(client: openai.OpenAI):
    extra = {"store": True, "metadata": {"a": "b"}, "service_tier": "auto", "new_field": [1]}
    assert ask(client, user="me", extra_body=extra).choices[0].message.content == ANSWER


# Thinking


def test_effort_becomes_a_budget(client: openai.OpenAI):
    none = ask(client, reasoning_effort="none", max_tokens=20).choices[0].message
    assert none.content and not hasattr(none, "reasoning_content")
    assert ask(client, reasoning_effort="minimal").choices[0].message.content == ANSWER
    few = ask(client, reasoning_effort="none", max_tokens=50, extra_body={"thinking": 8})
    assert 0 < few.usage.completion_tokens_details.reasoning_tokens <= 10  # with both marks


def test_mistrals_style_has_the_thinking_in_the_content(client: openai.OpenAI):
    style = {"reasoning_format": "mistral"}
    message = ask(client, extra_body=style).choices[0].message
    assert message.content == [
        {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
        {"type": "text", "text": ANSWER},
    ]
    deltas = [
        chunk.choices[0].delta.content for chunk in ask(client, stream=True, extra_body=style)
    ]
    thinking = [part for delta in deltas if isinstance(delta, list) for part in delta]
    assert "".join(part["thinking"][0]["text"] for part in thinking) == THOUGHT
    assert "".join(delta for delta in deltas if isinstance(delta, str)) == ANSWER


def test_thinking_may_come_back_in_either_style(client: openai.OpenAI):
    def tokens(**turn: Any) -> int:
        messages = [*SUM, {"role": "assistant"} | turn, {"role": "user", "content": "Sure?"}]
        return ask(client, messages, max_tokens=1).usage.prompt_tokens

    apart = tokens(content=ANSWER, reasoning_content=THOUGHT)
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}]
    assert apart == tokens(content=[*parts, {"type": "text", "text": ANSWER}])
    assert apart > tokens(content=ANSWER)


def test_an_open_turn_of_the_model_is_continued(client: openai.OpenAI):
    turn = {"role": "assistant", "content": "12", "reasoning_content": THOUGHT}
    for prefix in ({}, {"prefix": True}):
        assert ask(client, [*SUM, turn | prefix]).choices[0].message.content == "2"


# Images and structure


def test_an_image_is_seen(client: openai.OpenAI):
    case = make_case("one_image", 1_000_000_000)
    data = io.BytesIO()
    case.images[0].save(data, "PNG")
    url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "text", "text": case.question},
    ]
    assert ask(client, [{"role": "user", "content": content}]).choices[0].message.content == (
        case.answer
    )


class Digits(BaseModel):
    digits: list[int]
    certain: bool


def test_structured_output_is_parsed_into_a_class(client: openai.OpenAI):
    completion = client.chat.completions.parse(
        model="demo", messages=SUM, temperature=0, max_tokens=2000, response_format=Digits
    )
    assert isinstance(completion.choices[0].message.parsed, Digits)


def test_an_answer_keeps_to_a_form(client: openai.OpenAI):
    close = Tokenizer.load(locate("demo")).encode("}")[0]  # or the demo goes on and on
    for form, bias, fits in (
        ({"response_format": {"type": "json_object"}}, {str(close): 100}, r"\{\s*\}"),
        ({"regex": "[a-c]{3}"}, {}, "[a-c]{3}"),
        ({"choice": ["yes", "no"]}, {}, "yes|no"),
    ):
        form |= {"thinking": "off", "max_tokens": 200}
        choice = ask(client, logit_bias=bias, extra_body=form).choices[0]
        assert choice.finish_reason == "stop" and re.fullmatch(fits, choice.message.content)


# What goes wrong


def test_errors_are_those_of_the_client(client: openai.OpenAI, monkeypatch: Any, server: Server):
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, model="nothing")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, [{"role": "user", "content": [{"type": "text"}]}])
    assert wrong.value.param == "messages[0].content[0].text"
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, [{"role": "user", "content": "1 + 1 " * 9000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="there are no tools"):
        ask(client, tool_choice="required")

    def full(*_: Any) -> Any:
        raise Busy("enough wait already.", 7)

    monkeypatch.setattr(server.service.queue, "admit", full)
    with pytest.raises(openai.RateLimitError) as busy:
        ask(client)
    assert busy.value.response.headers["retry-after"] == "7"


def test_a_wrong_key_is_an_authentication_error():
    with live_server(Settings(models=("demo",), api_key="right")) as server:
        url = server.url + "/v1"
        with pytest.raises(openai.AuthenticationError):
            ask(openai.OpenAI(base_url=url, api_key="wrong", max_retries=0))
        assert ask(openai.OpenAI(base_url=url, api_key="right")).choices[0].message.content


def test_what_fails_within_a_stream_is_raised_by_the_client(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
):
    following = Exchange.__anext__
    seen: list[Any] = []

    async def failing(self: Exchange) -> Any:
        if len(seen) == 5:
            raise DeviceError("MLX failed.")
        seen.append(await following(self))
        return seen[-1]

    monkeypatch.setattr(Exchange, "__anext__", failing)
    with pytest.raises(openai.APIError, match=r"MLX failed\.") as failed:
        list(ask(client, stream=True))
    assert failed.value.code == "device_error"


# Long prompts


def test_a_long_prompt_is_told_of_while_it_is_read(client: openai.OpenAI):
    chunks = list(ask(client, LONG, stream=True, max_tokens=3))
    beats = [chunk for chunk in chunks if getattr(chunk, "progress", None)]
    done = [beat.progress["done_tokens"] for beat in beats]
    assert len(beats) > 1 and done == sorted(done)
    assert all(beat.progress["prompt_tokens"] > 1000 for beat in beats)
    assert all(beat.choices[0].delta.content is None for beat in beats)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_the_clients_own_way_to_read_a_stream_takes_all_of_it(client: openai.OpenAI):
    with client.chat.completions.stream(
        model="demo", messages=[{"role": "user", "content": "What is 1 + 1?"}], temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "2"


def test_a_stream_with_nothing_to_tell_sends_comments(
    server: Server, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sse, "PING_SECONDS", 0.005)
    body = {"messages": [{"role": "user", "content": "2 + 2 " * 300}], "stream": True}
    body |= {"max_tokens": 50}
    answer = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=60)
    assert ": ping" in answer.text and "data: [DONE]\n\n" in answer.text
    assert list(ask(client, body["messages"], stream=True, max_tokens=50))
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            json.loads(line.removeprefix("data: "))
