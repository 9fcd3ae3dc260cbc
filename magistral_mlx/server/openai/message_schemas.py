"""The messages of a chat as OpenAI's API spells them, with Mistral's thinking chunks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from magistral_mlx.server.schema import Many, Request


class TextPart(Request):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ThinkingPart(Request):
    """A piece of thinking, in Mistral's style."""

    type: Literal["thinking"]
    thinking: str | Many[TextPart]


class RefusalPart(Request):
    """A refusal, which is read as text."""

    type: Literal["refusal"]
    refusal: str


class ImageURL(Request):
    """Where an image is."""

    url: Annotated[
        str,
        Field(
            description="A data URL (data:image/png;base64,…). A web address where the server was "
            "started with --allow-remote-images. Never a file of the server's machine."
        ),
    ]
    detail: Annotated[str | None, Field(description="Accepted and ignored.")] = None


class ImagePart(Request):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL | str


class FunctionCall(Request):
    """What is called; the arguments are JSON text."""

    name: str
    arguments: str | dict[str, JsonValue] = "{}"


class CallIn(Request):
    """A call to a tool, in an earlier turn of the model."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Request):
    """The system prompt, in place of the model's own, which asks it to think.

    Where `reasoning_effort` or `thinking` asks for that, the model's own comes before it.
    """

    role: Literal["system", "developer"]
    content: str | Many[Annotated[TextPart | ThinkingPart, Field(discriminator="type")]]


class UserMessage(Request):
    """A user's turn."""

    role: Literal["user"]
    content: str | Many[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class AssistantMessage(Request):
    """An earlier turn of the model. Its thinking should come along, as it was trained."""

    role: Literal["assistant"]
    content: (
        str
        | Many[Annotated[TextPart | ThinkingPart | RefusalPart, Field(discriminator="type")]]
        | None
    ) = None
    reasoning_content: str | None = None
    reasoning: Annotated[str | None, Field(description="Another name of it.")] = None
    tool_calls: Many[CallIn] | None = None
    prefix: Annotated[
        bool | None,
        Field(
            description="As the last message: it is left open, and the model goes on with it. So "
            "it is where this is left out; false is refused."
        ),
    ] = None


class ToolMessage(Request):
    """What a tool returned."""

    role: Literal["tool"]
    content: str | Many[TextPart]
    tool_call_id: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


def message_dict(message: Request) -> dict[str, Any]:
    """The message as a dict that `to_messages` reads."""
    found = message.model_dump(exclude_none=True)
    content = found.get("content")
    if isinstance(content, list):
        found["content"] = [_readable(part) for part in content]
    return found


def _readable(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": part["refusal"]} if part["type"] == "refusal" else part
