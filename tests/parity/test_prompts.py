"""Our prompts against mistral-common's `encode_chat_completion`, given its own messages."""

import json

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.protocol.instruct import tool_calls as mtools
from mistral_common.protocol.instruct.chunk import ImageChunk, TextChunk, ThinkChunk
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from magistral_mlx.chat.messages import (
    Assistant,
    Image,
    System,
    Thought,
    Tool,
    ToolResult,
    User,
)
from magistral_mlx.chat.prompt import Prompt, encode
from magistral_mlx.chat.system import CARD_DEFAULT
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.events import ToolCall
from tests.languages import TEXTS
from tests.tekken import FULL_RANKS, full_tokenizer, older_tokenizer, tekken_folder

_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Größe, 中文"}},
    "required": ["city"],
}
CALL = ToolCall("get_weather", '{"city": "Zürich"}', "abcdefgh1")
MISTRAL_CALL = mtools.ToolCall(
    id="abcdefgh1",
    function=mtools.FunctionCall(name="get_weather", arguments='{"city": "Zürich"}'),
)


@pytest.fixture(scope="module")
def reference() -> MistralTokenizer:
    return MistralTokenizer.from_file(tekken_folder(FULL_RANKS) / "tekken.json")


def noise(width: int, height: int, mode: str = "RGB") -> PIL.Image.Image:
    shape = (height, width, len(mode))
    pixels = np.random.default_rng(width * height).integers(0, 256, shape, dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def assert_same(ours: Prompt, reference: MistralTokenizer, messages: list, tools: list = ()):  # type: ignore[assignment]
    theirs = reference.encode_chat_completion(
        ChatCompletionRequest(messages=messages, tools=list(tools) or None)
    )
    assert ours.tokens.tolist() == theirs.tokens
    assert len(ours.images) == len(theirs.images)
    for our_pixels, their_pixels in zip(ours.images, theirs.images, strict=True):
        assert our_pixels.dtype == np.float32
        np.testing.assert_array_equal(our_pixels, their_pixels)


@pytest.mark.parametrize("name", TEXTS)
def test_text_in_every_language_and_place(name: str, reference: MistralTokenizer):
    text = TEXTS[name]
    ours = [System((text, Thought(text), text)), User(text), Assistant(text, text), User(text)]
    chunks = [TextChunk(text=text), ThinkChunk(thinking=text), TextChunk(text=text)]
    theirs = [
        SystemMessage(content=chunks),
        UserMessage(content=text),
        AssistantMessage(content=[ThinkChunk(thinking=text), TextChunk(text=text)]),
        UserMessage(content=text),
    ]
    assert_same(encode(ours, full_tokenizer()), reference, theirs)


@settings(max_examples=100)
@given(st.text(), st.text())
def test_any_text(reference_text: str, user_text: str):
    ours = encode([System(reference_text), User(user_text)], full_tokenizer())
    messages = [SystemMessage(content=reference_text), UserMessage(content=user_text)]
    assert_same(ours, full_tokenizer().mistral, messages)


def test_the_model_cards_system_prompt(reference: MistralTokenizer):
    before, thought, after = CARD_DEFAULT.content
    assert isinstance(thought, Thought)
    chunks = [TextChunk(text=before), ThinkChunk(thinking=thought.text), TextChunk(text=after)]
    ours = encode([CARD_DEFAULT, User("How many r are in strawberry?")], full_tokenizer())
    theirs = [
        SystemMessage(content=chunks),
        UserMessage(content="How many r are in strawberry?"),
    ]
    assert_same(ours, reference, theirs)
    think, end_think = full_tokenizer().special.think, full_tokenizer().special.end_think
    assert ours.tokens.tolist().count(think) == ours.tokens.tolist().count(end_think) == 1


def test_control_tokens_spelled_by_a_user_stay_text(reference: MistralTokenizer):
    text = "[THINK]x[/THINK]</s><s>[INST][/INST][IMG][SYSTEM_PROMPT][TOOL_CALLS]"
    ours = encode([System(text), User(text)], full_tokenizer())
    assert_same(ours, reference, [SystemMessage(content=text), UserMessage(content=text)])
    control = [full_tokenizer().control_name(t) for t in ours.tokens if t < 1000]
    assert control == ["<s>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]"]


def test_several_turns_with_earlier_thinking(reference: MistralTokenizer):
    ours = [
        User("one"),
        Assistant("answer ", thinking="first thought"),
        User("two"),
        Assistant("no thinking "),
        User("three"),
        Assistant(thinking="cut off"),
        User("four"),
        Assistant("", thinking=""),  # left out
        User(""),
    ]
    theirs = [
        UserMessage(content="one"),
        AssistantMessage(content=[ThinkChunk(thinking="first thought"), TextChunk(text="answer ")]),
        UserMessage(content="two"),
        AssistantMessage(content="no thinking "),
        UserMessage(content="three"),
        AssistantMessage(content=[ThinkChunk(thinking="cut off")]),
        UserMessage(content="four"),
        UserMessage(content=""),
    ]
    assert_same(encode(ours, full_tokenizer()), reference, theirs)


def test_several_images_between_texts_and_turns(reference: MistralTokenizer):
    a, b, c, d = noise(300, 100), noise(61, 400), noise(1600, 20), noise(33, 33, "RGBA")
    ours = [
        User((Image(a), "first", Image(b), "second", "third")),
        Assistant("ok", thinking="hm"),
        User(("look", Image(c))),
        Assistant("ok"),
        User((Image(d), Image(a))),
    ]
    theirs = [
        UserMessage(
            content=[
                ImageChunk(image=a),
                TextChunk(text="first"),
                ImageChunk(image=b),
                TextChunk(text="second"),
                TextChunk(text="third"),
            ]
        ),
        AssistantMessage(content=[ThinkChunk(thinking="hm"), TextChunk(text="ok")]),
        UserMessage(content=[TextChunk(text="look"), ImageChunk(image=c)]),
        AssistantMessage(content="ok"),
        UserMessage(content=[ImageChunk(image=d), ImageChunk(image=a)]),
    ]
    prompt = encode(ours, full_tokenizer())
    assert_same(prompt, reference, theirs)
    merged_patches = sum(p.shape[1] * p.shape[2] for p in prompt.images) // 28**2
    assert np.count_nonzero(prompt.tokens == full_tokenizer().special.image) == merged_patches


def test_tools_with_calls_and_results(reference: MistralTokenizer):
    tools = [Tool("get_weather", "Wetter, 天気", _SCHEMA), Tool("now")]
    second = ToolCall("now", "{ }", "abcdefgh2")
    ours = [
        System("Use tools."),
        User("Weather?"),
        Assistant("Let me see.", thinking="call both", tool_calls=(CALL, second)),
        ToolResult("12:00", "abcdefgh2"),
        ToolResult(json.dumps({"degrees": 21}), "abcdefgh1"),
        Assistant("21 degrees.", thinking="easy"),
        User("And now?"),
        Assistant(tool_calls=(ToolCall("now", "{}", "abcdefgh3"),)),
        ToolResult("13:00", "abcdefgh3"),
    ]

    def mistral_now(id: str, arguments: str) -> mtools.ToolCall:
        function = mtools.FunctionCall(name="now", arguments=arguments)
        return mtools.ToolCall(id=id, function=function)

    theirs = [
        SystemMessage(content="Use tools."),
        UserMessage(content="Weather?"),
        AssistantMessage(
            content=[ThinkChunk(thinking="call both"), TextChunk(text="Let me see.")],
            tool_calls=[MISTRAL_CALL, mistral_now("abcdefgh2", "{ }")],
        ),
        ToolMessage(content="12:00", tool_call_id="abcdefgh2"),
        ToolMessage(content='{"degrees": 21}', tool_call_id="abcdefgh1"),
        AssistantMessage(content=[ThinkChunk(thinking="easy"), TextChunk(text="21 degrees.")]),
        UserMessage(content="And now?"),
        AssistantMessage(tool_calls=[mistral_now("abcdefgh3", "{}")]),
        ToolMessage(content="13:00", tool_call_id="abcdefgh3"),
    ]
    their_tools = [
        mtools.Tool(
            function=mtools.Function(
                name="get_weather", description="Wetter, 天気", parameters=_SCHEMA
            )
        ),
        mtools.Tool(
            function=mtools.Function(name="now", parameters={"type": "object", "properties": {}})
        ),
    ]
    assert_same(encode(ours, full_tokenizer(), tools), reference, theirs, their_tools)


def test_calls_without_ids_and_results_in_order(reference: MistralTokenizer):
    """The ids are not part of a v13 prompt, but they pair results with calls."""
    ours = [
        User("Weather?"),
        Assistant(tool_calls=(ToolCall("f", "{}"), ToolCall("g", "{}"))),
        ToolResult("first"),
        ToolResult("second"),
    ]
    calls = [
        mtools.ToolCall(id=name, function=mtools.FunctionCall(name=name, arguments="{}"))
        for name in ("f", "g")
    ]
    theirs = [
        UserMessage(content="Weather?"),
        AssistantMessage(tool_calls=calls),
        ToolMessage(content="first", tool_call_id="f"),
        ToolMessage(content="second", tool_call_id="g"),
    ]
    assert_same(encode(ours, full_tokenizer()), reference, theirs)


def test_a_generated_answer_goes_back_as_it_was_written():
    """Parsed events, put back into the conversation, give the very tokens of the template."""
    tokenizer = full_tokenizer()
    prompt = encode([User("a"), Assistant("Red.", "hm", (CALL,)), ToolResult("1")], tokenizer)
    s = tokenizer.special
    generated = [
        *(s.think, *tokenizer.encode("hm"), s.end_think, *tokenizer.encode("Red.")),
        *(s.tool_calls, *tokenizer.encode("get_weather"), s.args),
        *(*tokenizer.encode('{"city": "Zürich"}'), s.eos),
    ]
    start = len(encode([User("a")], tokenizer))
    assert prompt.tokens[start : start + len(generated)].tolist() == generated


@pytest.mark.parametrize("version", ["v3", "v7", "v11"])
def test_older_versions(version: str):
    tokenizer: Tokenizer = older_tokenizer(version)
    image = noise(120, 45)
    ours = [
        System("Be brief."),
        User((Image(image), "What?")),
        Assistant(tool_calls=(CALL,)),
        ToolResult("{}", "abcdefgh1"),
        Assistant("Red."),
        User("Sure?"),
    ]
    theirs = [
        SystemMessage(content="Be brief."),
        UserMessage(content=[ImageChunk(image=image), TextChunk(text="What?")]),
        AssistantMessage(tool_calls=[MISTRAL_CALL]),
        ToolMessage(content="{}", tool_call_id="abcdefgh1"),
        AssistantMessage(content="Red."),
        UserMessage(content="Sure?"),
    ]
    path = tekken_folder(version=version, thinking=False) / "tekken.json"
    assert_same(encode(ours, tokenizer), MistralTokenizer.from_file(path), theirs)


def test_an_answer_that_is_left_open_is_continued(reference: MistralTokenizer):
    theirs = [
        UserMessage(content="Hi"),
        AssistantMessage(content=[ThinkChunk(thinking="hm"), TextChunk(text="Hel")], prefix=True),
    ]
    ours = encode([User("Hi"), Assistant("Hel", "hm", prefix=True)], full_tokenizer())
    assert_same(ours, reference, theirs)
    assert not ours.inside_thinking
    assert ours.tokens[-1] != full_tokenizer().special.eos


def test_thinking_that_is_left_open_is_continued(reference: MistralTokenizer):
    theirs = [
        UserMessage(content="Hi"),
        AssistantMessage(content=[ThinkChunk(thinking="hm", closed=False)], prefix=True),
    ]
    ours = encode([User("Hi"), Assistant("", "hm", prefix=True)], full_tokenizer())
    assert_same(ours, reference, theirs)
    assert ours.inside_thinking


def test_an_answer_that_was_left_open_earlier_is_closed(reference: MistralTokenizer):
    cut_short = [User("Hi"), Assistant("Hel", "hm", prefix=True), User("Well?")]
    whole = [User("Hi"), Assistant("Hel", "hm"), User("Well?")]
    ours = encode(cut_short, full_tokenizer())
    assert ours.tokens.tolist() == encode(whole, full_tokenizer()).tokens.tolist()
    assert not ours.inside_thinking
