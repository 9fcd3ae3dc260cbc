"""Inspect's provider `magistral-mlx`: messages, options and outputs, both ways."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentAudio,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ResponseSchema,
)
from inspect_ai.tool import ToolCall, ToolFunction, ToolInfo, ToolParam, ToolParams
from inspect_ai.util import json_schema

from magistral_mlx import Magistral
from magistral_mlx.chat.messages import Assistant, System, ToolResult, User
from magistral_mlx.demo.cases import make_case
from magistral_mlx.errors import InvalidOption, PromptError
from magistral_mlx.evaluation import provider as provider_module
from magistral_mlx.evaluation.demo_task import demo
from magistral_mlx.evaluation.messages import to_message
from magistral_mlx.evaluation.provider import MagistralProvider
from magistral_mlx.events import ToolCall as OurCall
from tests.scripted import write_scripted_checkpoint


@pytest.fixture(scope="module")
def loaded() -> Iterator[Magistral]:
    with Magistral.load("demo", context=2048) as model:
        yield model


@pytest.fixture
def provider(loaded: Magistral) -> MagistralProvider:
    return MagistralProvider("demo", loaded=loaded)


def ask(
    provider: MagistralProvider,
    *messages: Any,
    tools: Any = (),
    choice: Any = "auto",
    **config: Any,
) -> ModelOutput:
    asked = [ChatMessageUser(content=each) if isinstance(each, str) else each for each in messages]
    return asyncio.run(provider.generate(asked, list(tools), choice, GenerateConfig(**config)))


def test_thinking_is_apart_from_the_answer(provider: MagistralProvider):
    output = ask(provider, "What is 12 + 30?", temperature=0)
    thought, text = output.message.content
    assert isinstance(thought, ContentReasoning) and thought.reasoning.endswith("1+3+0=4,0")
    assert isinstance(text, ContentText) and output.completion == text.text == "42"
    assert output.stop_reason == "stop"
    assert output.metadata is not None and output.metadata["thinking_end"] == "model"
    usage = output.usage
    assert usage is not None and usage.reasoning_tokens is not None
    assert 0 < usage.reasoning_tokens < usage.output_tokens


def test_images_are_seen(provider: MagistralProvider):
    for sample in demo(2).dataset[2:6]:
        output = asyncio.run(provider.generate(sample.input, [], "auto", GenerateConfig()))
        assert output.completion == sample.target


def test_a_conversation_keeps_thinking_calls_and_results():
    call = ToolCall(id="abc", function="add", arguments={"a": 1})
    said = ChatMessageAssistant(
        content=[ContentReasoning(reasoning="hm"), ContentText(text="Wait.")], tool_calls=[call]
    )
    assert to_message(said) == Assistant("Wait.", "hm", (OurCall("add", '{"a": 1}', "abc"),))
    assert to_message(ChatMessageTool(content="2", tool_call_id="abc")) == ToolResult("2", "abc")
    assert to_message(ChatMessageSystem(content="Be brief.")) == System("Be brief.")
    assert to_message(ChatMessageUser(content=[ContentText(text="So?")])) == User(("So?",))


def test_content_that_cannot_be_read_is_refused():
    audio = ContentAudio(audio="data:audio/wav;base64,AAAA", format="wav")
    with pytest.raises(PromptError, match="type audio"):
        to_message(ChatMessageUser(content=[audio]))


def test_the_same_seed_gives_the_same_answer_and_each_epoch_another(
    provider: MagistralProvider, monkeypatch: pytest.MonkeyPatch
):
    def seed_of(epoch: int | None) -> int:
        active = epoch and SimpleNamespace(epoch=epoch)
        monkeypatch.setattr(provider_module, "sample_active", lambda: active)
        output = ask(provider, "What is 1 + 1?", seed=7, max_tokens=4)
        assert output.metadata is not None
        return output.metadata["seed"]

    assert [seed_of(epoch) for epoch in (None, 1, 2, 5)] == [7, 7, 8, 11]


def test_options_of_inspect_reach_the_model(provider: MagistralProvider):
    short = ask(provider, "What is 12 + 30?", max_tokens=3)
    assert short.stop_reason == "max_tokens" and short.usage is not None
    assert short.usage.output_tokens == 3
    silent = ask(provider, "What is 12 + 30?", reasoning_effort="none", temperature=0, max_tokens=8)
    assert silent.usage is not None and silent.usage.reasoning_tokens == 0
    thrifty = ask(provider, "What is 456 + 789?", reasoning_tokens=6, temperature=0, max_tokens=30)
    assert thrifty.metadata is not None and thrifty.metadata["thinking_end"] == "budget"
    stopped = ask(provider, "What is 12 + 30?", stop_seqs=["2"], temperature=0)
    assert stopped.completion == "4"
    several = ask(provider, "What is 12 + 30?", num_choices=3, max_tokens=4)
    assert len(several.choices) == 3


def test_log_probabilities_are_told(provider: MagistralProvider):
    output = ask(provider, "What is 2 + 2?", logprobs=True, top_logprobs=2, temperature=0)
    logprobs = output.choices[0].logprobs
    assert logprobs is not None
    tokens = [each.token for each in logprobs.content]
    assert "".join(tokens).endswith("4")
    for each in logprobs.content:
        assert each.logprob <= 0 and len(each.top_logprobs or ()) == 2


def test_a_schema_holds_the_answer(provider: MagistralProvider):
    schema = ResponseSchema(name="n", json_schema=json_schema(int))
    output = ask(provider, "What is 2 + 2?", response_schema=schema, max_tokens=100)
    assert output.completion.strip().lstrip("-").isdigit()


def test_tools_are_called(tmp_path: Path):
    script = ["[/INST]", "[TOOL_CALLS]", "f", "[ARGS]", "{\n }", "</s>"]
    tool = ToolInfo(
        name="f",
        description="Adds.",
        parameters=ToolParams(properties={"x": ToolParam(type="integer")}),
    )
    write_scripted_checkpoint(tmp_path / "model", script)
    with Magistral.load(tmp_path / "model") as model:
        provider = MagistralProvider("scripted", loaded=model)
        output = ask(provider, "Add.", tools=[tool], temperature=0)
        (call,) = output.message.tool_calls or ()
        assert (call.function, call.arguments, call.parse_error) == ("f", {}, None)
        assert output.stop_reason == "tool_calls" and call.id
        named = ask(provider, "Add.", tools=[tool], choice=ToolFunction("f"), temperature=0)
        assert [each.function for each in named.message.tool_calls or ()] == ["f"]
        with pytest.raises(InvalidOption, match="none of the tools"):
            ask(provider, "Add.", tools=[tool], choice=ToolFunction("product"))


def test_a_prompt_that_is_too_long_is_an_output_that_says_so(provider: MagistralProvider):
    output = ask(provider, "word " * 3000)
    assert output.stop_reason == "model_length"
    assert output.error is not None and "2,048" in output.error


def test_cancelling_stops_the_answer(provider: MagistralProvider):
    async def cancelled() -> None:
        message = ChatMessageUser(content="What is 1 + 1?")
        config = GenerateConfig(logit_bias={2: -100.0})  # the end of the turn does not come
        task = asyncio.create_task(provider.generate([message], [], "auto", config))
        while not provider.model.activity.running:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while provider.model.activity.running:
            await asyncio.sleep(0)

    asyncio.run(cancelled())


def test_tokens_are_counted_by_the_models_own_rules(provider: MagistralProvider):
    async def count() -> tuple[int, int]:
        (sample, *_) = demo(1).dataset[1:2]
        (image,) = [part for part in sample.input[0].content if isinstance(part, ContentImage)]
        return (
            await provider.count_text_tokens("What is 12 + 30?"),
            await provider.count_media_tokens(image),
        )

    text, image = asyncio.run(count())
    width, height = make_case("one_image", 1_000_000_000).images[0].size
    assert text == len(provider.model.tokenizer.encode("What is 12 + 30?"))
    across, down = ((side - 1) // 28 + 1 for side in (width, height))
    assert image == down * (across + 1)


def test_what_cannot_be_loaded_is_inspects_one_line():
    for name, arguments in (("/no/such/folder", {}), ("demo", {"contxt": 5}), ("demo", {"kv": 9})):
        with pytest.raises(PrerequisiteError):
            MagistralProvider(name, **arguments)
