"""What may be passed as a prompt: text, typed messages, dicts of OpenAI's API, images."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from magistral_mlx import (
    Assistant,
    Image,
    ImageError,
    PromptError,
    System,
    Thought,
    Tool,
    ToolCall,
    ToolResult,
    User,
)
from magistral_mlx.api.image_inputs import open_image
from magistral_mlx.api.inputs import to_messages, to_tools
from magistral_mlx.api.message_dicts import parse_message, to_dict

_IMAGE = PIL.Image.new("RGB", (30, 20), (200, 10, 10))


def png() -> bytes:
    data = io.BytesIO()
    _IMAGE.save(data, "PNG")
    return data.getvalue()


def data_url() -> str:
    return "data:image/png;base64," + base64.b64encode(png()).decode()


def same_pixels(image: Image) -> bool:
    return image.image.size == (30, 20) and image.image.getpixel((3, 3)) == (200, 10, 10)


def image_in(message: object) -> Image:
    assert isinstance(message, User)
    (image,) = [part for part in message.content if isinstance(part, Image)]
    return image


# Text and typed messages


def test_text_is_what_the_user_says():
    assert to_messages("Hello") == [User("Hello")]


def test_typed_messages_stay_as_they_are():
    messages = [System("Be brief."), User("Hi"), Assistant("Hello", "hm"), User("Bye")]
    assert to_messages(messages) == messages
    assert to_messages(User("Hi")) == [User("Hi")]


@pytest.mark.parametrize("prompt", [None, 3, b"bytes"])
def test_what_is_no_prompt_is_refused(prompt: Any):
    with pytest.raises(PromptError, match="a prompt is text, a message or a list of messages"):
        to_messages(prompt)


def test_a_list_names_the_entry_that_is_no_message():
    with pytest.raises(PromptError, match=r"messages\[1\] must be a message or a dict .* not str"):
        to_messages([User("Hi"), "Bye"])  # type: ignore[list-item]


# Images


@pytest.mark.parametrize("kind", ["path", "text path", "bytes", "PIL", "data URL", "Image"])
def test_an_image_may_come_in_many_ways(kind: str, tmp_path: Path):
    file = tmp_path / "red.png"
    file.write_bytes(png())
    source = {
        "path": file,
        "text path": str(file),
        "bytes": png(),
        "PIL": _IMAGE,
        "data URL": data_url(),
        "Image": Image(_IMAGE),
    }[kind]
    (one,) = to_messages("?", source)
    (several,) = to_messages("?", [source, source])
    assert isinstance(one, User) and isinstance(several, User)
    assert one.content[1] == "?" and same_pixels(image_in(one))
    assert [type(part) for part in several.content] == [Image, Image, str]


def test_images_stand_before_the_text_of_the_last_users_message():
    messages = to_messages([User("One"), Assistant("1"), User("Two")], _IMAGE)
    assert messages[0] == User("One")
    assert isinstance(messages[2], User) and messages[2].content[1] == "Two"


def test_images_without_a_users_message_are_refused():
    with pytest.raises(PromptError, match="no user's message that could hold them"):
        to_messages([System("Hi")], _IMAGE)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,aGVsbG8=", "not an image that can be opened"),
        ("https://example.org/a.png", "Fetch the image first"),
    ],
)
def test_a_url_that_is_no_image_says_why(url: str, message: str):
    with pytest.raises(ImageError, match=message):
        open_image(url)


def test_something_else_is_no_image():
    with pytest.raises(ImageError, match="an image is a path, bytes, a PIL image or a data URL"):
        open_image(3)  # type: ignore[arg-type]


# Dicts


def test_a_conversation_of_dicts():
    call = {
        "id": "abcdefgh1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    messages = to_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefgh1", "content": "cold"},
            {"role": "assistant", "content": "Cold.", "reasoning_content": "hm"},
            {"role": "user", "content": [{"type": "text", "text": "Thanks"}]},
        ]
    )
    assert messages == [
        System("Be brief."),
        User("Weather?"),
        Assistant(tool_calls=(ToolCall("weather", '{"city": "Oslo"}', "abcdefgh1"),)),
        ToolResult("cold", "abcdefgh1"),
        Assistant("Cold.", "hm"),
        User(("Thanks",)),
    ]


def test_dicts_and_typed_messages_may_be_mixed():
    assert to_messages([{"role": "user", "content": "Hi"}, Assistant("Ho"), User("Hu")]) == [
        User("Hi"),
        Assistant("Ho"),
        User("Hu"),
    ]


def test_thinking_chunks_are_read_in_system_and_assistant_messages():
    chunks = [
        {"type": "text", "text": "Draft:"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    ]
    system, assistant = to_messages(
        [{"role": "system", "content": chunks}, {"role": "assistant", "content": chunks}]
    )
    assert system == System(("Draft:", Thought("hm")))
    assert assistant == Assistant("Draft:", "hm")


def test_arguments_of_a_call_may_be_a_dict():
    function = {"name": "weather", "arguments": {"city": "Zürich"}}
    (message,) = to_messages({"role": "assistant", "tool_calls": [{"function": function}]})
    assert isinstance(message, Assistant)
    assert json.loads(message.tool_calls[0].arguments) == {"city": "Zürich"}


@pytest.mark.parametrize(
    "chunk",
    [
        {"type": "image_url", "image_url": {"url": data_url(), "detail": "high"}},
        {"type": "image_url", "image_url": data_url()},
        {"type": "input_image", "image_url": data_url()},
        {"type": "image", "image": _IMAGE},
        {"type": "image", "image": png()},
    ],
    ids=["OpenAI", "Mistral", "Responses", "PIL", "bytes"],
)
def test_images_in_dicts(chunk: dict[str, Any]):
    (message,) = to_messages({"role": "user", "content": [{"type": "text", "text": "?"}, chunk]})
    assert same_pixels(image_in(message))


def test_a_file_in_a_dict_is_opened_unless_the_caller_is_not_trusted(tmp_path: Path):
    file = tmp_path / "red dot.png"
    file.write_bytes(png())
    for url in (str(file), file.as_uri()):
        chunk = {"type": "image_url", "image_url": {"url": url}}
        prompt = [{"role": "user", "content": [chunk]}]
        assert same_pixels(image_in(to_messages(prompt)[0]))
        with pytest.raises(ImageError, match=r"url must be a data URL"):
            to_messages(prompt, local_files=False)


@pytest.mark.parametrize("local_files", [True, False])
@pytest.mark.parametrize(
    "url", ["file://[x/y", "//[x", "data://[x,AAA", "http://[::1", "http://\u2100/", "da\tta:,x"]
)
def test_a_malformed_url_in_a_dict_is_refused_in_its_place(url: str, local_files: bool):
    chunk = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(ImageError, match=r"^messages\[0\]\.content\[0\]\.image_url\.url"):
        to_messages([{"role": "user", "content": [chunk]}], local_files=local_files)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"a": 1', '{"a": 1'),
        ("null", "null"),
        ("{'a': 1,}", "{'a': 1,}"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("", "{}"),
        (None, "{}"),
        ([1], "[1]"),
    ],
)
def test_arguments_of_an_earlier_call_are_what_the_model_wrote(given: Any, expected: str):
    call = {"function": {"name": "f", "arguments": given}}
    (message,) = to_messages({"role": "assistant", "tool_calls": [call]})
    assert isinstance(message, Assistant) and message.tool_calls[0].arguments == expected


def test_a_part_may_name_the_field_that_its_image_came_from():
    image = {"type": "image", "image": b"", "where": "images[3]"}
    with pytest.raises(ImageError, match=r"^images\[3\]: the image is empty") as caught:
        to_messages({"role": "user", "content": [image]})
    assert caught.value.where == "images[3]"


_BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"content": "Hi"}, r"messages\[1\] has no role"),
    ({"role": "bot", "content": "Hi"}, r"messages\[1\]\.role is 'bot'"),
    ({"role": "user"}, r"messages\[1\]\.content is missing"),
    ({"role": "user", "content": 3}, r"messages\[1\]\.content is of type int"),
    ({"role": "user", "content": [3]}, r"messages\[1\]\.content\[0\] is of type int"),
    ({"role": "user", "content": [{"text": "Hi"}]}, r"content\[0\]\.type is missing"),
    ({"role": "user", "content": [{"type": "audio"}]}, r"content\[0\]\.type is 'audio'"),
    ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\]\.text is missing"),
    (
        {"role": "user", "content": [{"type": "image_url"}]},
        r"content\[0\]\.image_url is missing",
    ),
    ({"role": "tool", "content": "x", "tool_call_id": 3}, r"tool_call_id is of type int"),
    ({"role": "assistant", "content": "x", "tool_calls": "y"}, r"tool_calls is of type str"),
    ({"role": "assistant", "tool_calls": [{}]}, r"tool_calls\[0\]\.function is missing"),
    ({"role": "assistant", "content": "x", "prefix": "yes"}, r"prefix is of type str"),
]


@pytest.mark.parametrize(("entry", "message"), _BROKEN)
def test_a_malformed_dict_names_message_and_field(entry: dict[str, Any], message: str):
    with pytest.raises(PromptError, match=message):
        to_messages([{"role": "user", "content": "Hi"}, entry])


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ("a\ud800b", "the prompt"),
        (User("a\ud800b"), "the message.content"),
        ([User("x"), User(("x", "a\ud800b"))], "messages[1].content[1]"),
        (System((Thought("a\ud800b"),)), "the message.content[0]"),
        (Assistant("x", "a\ud800b"), "the message.thinking"),
        (Assistant("a\ud800b"), "the message.text"),
        (Assistant(tool_calls=(ToolCall("f", "a\ud800b"),)), "the message.tool_calls[0].arguments"),
        (ToolResult("a\ud800b"), "the message.content"),
        ({"role": "user", "content": "a\ud800b"}, "the message.content"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a\ud800b"}]}],
            "messages[0].content[0]",
        ),
    ],
)
def test_half_a_surrogate_pair_is_refused_where_it_stands(prompt: Any, field: str):
    with pytest.raises(PromptError) as refused:
        to_messages(prompt)
    problem = "U+D800 at 1 is half of a surrogate pair."
    assert str(refused.value) == f"{field} is not Unicode text: {problem}"


def test_an_image_that_cannot_be_opened_names_its_place():
    chunk = {"type": "image_url", "image_url": {"url": "/no/such.png"}}
    with pytest.raises(ImageError, match=r"messages\[0\]\.content\[0\].*no image /no/such"):
        to_messages([{"role": "user", "content": [chunk]}])
    chunk = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(ImageError, match="is a web address, and nothing is downloaded"):
        to_messages([{"role": "user", "content": [chunk]}])


@pytest.mark.parametrize(
    "message",
    [
        System("Be brief."),
        System(("Draft:", Thought("hm"), "Then answer.")),
        User("Hi"),
        User(("One", "Two")),
        Assistant("Red."),
        Assistant("", "hm", prefix=True),
        Assistant("So:", "hm", (ToolCall("f", '{"a": 1}', "x"), ToolCall("g", "{}"))),
        ToolResult("cold", "x"),
        ToolResult("cold"),
    ],
)
def test_a_message_survives_the_way_to_a_dict_and_back(message: Any):
    entry = json.loads(json.dumps(to_dict(message, lambda image: "")))
    assert parse_message(entry, "it") == message


# Tools


def test_tools_as_in_openais_api():
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "weather", "description": "The weather", "parameters": parameters}
    expected = Tool("weather", "The weather", parameters)
    assert to_tools([{"type": "function", "function": function}]) == (expected,)
    assert to_tools([function, Tool("now")]) == (expected, Tool("now"))
    assert to_tools([{"name": "now"}]) == (Tool("now"),)
    assert to_tools([function | {"strict": True}])[0].strict
    assert not to_tools([function | {"strict": None}])[0].strict
    assert to_tools(None) == ()


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (3, r"tools\[0\] is of type int"),
        ({"type": "web"}, r"tools\[0\]\.type is 'web'"),
        ({"function": {}}, r"tools\[0\]\.function\.name is missing"),
        ({"name": "f", "parameters": 3}, r"tools\[0\]\.parameters is of type int"),
        ({"name": "f", "strict": "yes"}, r"tools\[0\]\.strict is of type str"),
    ],
)
def test_a_malformed_tool_names_its_field(tool: Any, message: str):
    with pytest.raises(PromptError, match=message):
        to_tools([tool])


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([Tool("f"), {"name": ""}], r"tools\[1\] has an empty name"),
        ([Tool("f"), Tool("g"), {"name": "f"}], r"tools\[0\] and tools\[2\] .* named 'f'"),
    ],
)
def test_each_tool_has_a_name_of_its_own(tools: list[Any], message: str):
    with pytest.raises(PromptError, match=message):
        to_tools(tools)
