"""What is refused when messages are turned into a prompt, and how that is said."""

from datetime import date

import numpy as np
import PIL.Image
import pytest

from magistral_mlx.chat.messages import (
    Assistant,
    Image,
    Message,
    System,
    Thought,
    Tool,
    ToolResult,
    User,
)
from magistral_mlx.chat.prompt import encode
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import ImageError, PromptError
from magistral_mlx.events import ToolCall
from tests.tekken import full_tokenizer, older_tokenizer, small_tokenizer, tekken_folder


def prompt_text(messages: list[Message], tokenizer: Tokenizer, tools: list[Tool] | None = None):
    """The prompt with its control tokens spelled out, to be read."""
    tokens = encode(messages, tokenizer, tools).tokens.tolist()
    return "".join(tokenizer.control_name(t) or tokenizer.decode([t]) for t in tokens)


def refusal(messages: list[Message], tokenizer: Tokenizer | None = None, **more) -> str:
    with pytest.raises(PromptError) as caught:
        encode(messages, tokenizer or small_tokenizer(), **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_template_of_magistral():
    messages = [
        System(("Draft first:", Thought("Your thoughts"), "Then answer.")),
        User((Image(PIL.Image.new("RGB", (300, 100))), "What is it?")),
        Assistant("Red.", thinking="hm"),
        User("Sure?"),
    ]
    row = "[IMG]" * 11
    assert prompt_text(messages, full_tokenizer()) == (
        "<s>[SYSTEM_PROMPT]Draft first:[THINK]Your thoughts[/THINK]Then answer.[/SYSTEM_PROMPT]"
        f"[INST]{row}[IMG_BREAK]{row}[IMG_BREAK]{row}[IMG_BREAK]{row}[IMG_END]What is it?[/INST]"
        "[THINK]hm[/THINK]Red.</s>[INST]Sure?[/INST]"
    )


def test_an_image_has_a_token_for_each_merged_patch():
    tokenizer = small_tokenizer()
    image = Image(PIL.Image.new("RGB", (56, 28)))
    prompt = encode([User((image, "a", image, "b"))], tokenizer)
    assert np.count_nonzero(prompt.tokens == tokenizer.special.image) == 2 * 2
    assert [p.shape for p in prompt.images] == [(3, 28, 56)] * 2


def test_an_image_that_is_only_written_of_has_no_tokens():
    tokenizer = small_tokenizer()
    prompt = encode([User("[IMG]")], tokenizer)
    assert prompt.images == ()
    assert tokenizer.special.image not in prompt.tokens
    assert prompt.tokens.dtype == np.int32
    assert len(prompt) == len(prompt.tokens)


def test_the_tokens_of_a_prompt_cannot_be_changed():
    tokens = encode([User("a")], small_tokenizer()).tokens
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 7


def test_earlier_thinking_is_left_out_for_a_model_without_thinking_tokens():
    messages = [User("a"), Assistant("b", thinking="hm"), User("c")]
    assert prompt_text(messages, older_tokenizer()) == "<s>[INST]a[/INST]b</s>[INST]c[/INST]"


def test_calls_without_ids_get_the_same_ones_every_time():
    messages = [
        User("a"),
        Assistant(tool_calls=(ToolCall("f", "{}"), ToolCall("g", "{}"))),
        ToolResult("1"),
        ToolResult("2"),
        Assistant("b"),
        User("c"),
    ]
    text = prompt_text(messages, older_tokenizer("v11"))
    assert "[TOOL_CALLS]f[CALL_ID]000000001[ARGS]{}[TOOL_CALLS]g[CALL_ID]000000002[ARGS]{}" in text
    assert "[TOOL_RESULTS]000000001[TOOL_CONTENT]1[/TOOL_RESULTS]" in text
    assert "[TOOL_RESULTS]000000002[TOOL_CONTENT]2[/TOOL_RESULTS]" in text
    assert prompt_text(messages, older_tokenizer("v11")) == text


# Refusals


@pytest.mark.parametrize("messages", [[], [System("x")], [User("a"), Assistant("b")]])
def test_a_conversation_needs_something_to_answer(messages: list[Message]):
    assert "nothing to answer" in refusal(messages)


def test_a_tool_result_without_a_call_is_refused():
    assert "answers no call" in refusal([User("a"), ToolResult("1")])


def test_a_tool_result_for_another_call_is_refused():
    messages = [User("a"), Assistant(tool_calls=(ToolCall("f", "{}", "x"),)), ToolResult("1", "y")]
    assert "names the call 'y'" in refusal(messages)


def test_unanswered_calls_are_refused():
    messages = [
        User("a"),
        Assistant(tool_calls=(ToolCall("f", "{}"), ToolCall("g", "{}"))),
        ToolResult("1"),
        Assistant("b"),
        User("c"),
    ]
    assert "Not the same number" in refusal(messages)


def test_a_tool_whose_name_cannot_be_called_is_refused():
    assert "get weather" in refusal([User("a")], tools=[Tool("get weather")])


def test_a_tool_with_a_broken_schema_is_refused():
    assert "schema" in refusal([User("a")], tools=[Tool("f", parameters={"type": "nonsense"})])


def test_a_tool_schema_that_is_not_json_is_refused():
    refusal([User("a")], tools=[Tool("f", parameters={"type": "object", "default": date.today()})])


def test_thinking_in_the_system_prompt_needs_thinking_tokens():
    messages = [System(("a", Thought("b"))), User("c")]
    assert "no [THINK] token" in refusal(messages, older_tokenizer())


def test_a_text_that_cannot_be_tokenized_is_refused():
    assert "cannot become a prompt" in refusal([User(" " * 1_100_000)])


@pytest.mark.parametrize("wrong", ["hello", {"role": "user", "content": "hello"}, None])
def test_something_that_is_no_message_is_refused(wrong):
    assert "must be System, User, Assistant or ToolResult" in refusal([wrong, User("a")])


def test_an_image_that_is_not_an_image_says_how_to_make_one():
    assert "Image.open" in refusal([User((PIL.Image.new("RGB", (9, 9)), "a"))])  # type: ignore[arg-type]
    assert "text and Thought" in refusal([System(("a", 7)), User("b")])  # type: ignore[arg-type]


def test_an_image_for_a_text_model_is_refused():
    tokenizer = Tokenizer.load(tekken_folder(images=False))
    with pytest.raises(ImageError, match="reads text only"):
        encode([User((Image(PIL.Image.new("RGB", (9, 9))), "a"))], tokenizer)


def test_an_image_in_another_mode_must_be_opened_first():
    with pytest.raises(ImageError, match=r"mode CMYK .*Image\.open"):
        Image(PIL.Image.new("CMYK", (9, 9)))
    assert Image.open(PIL.Image.new("CMYK", (9, 9))).image.mode == "RGB"
