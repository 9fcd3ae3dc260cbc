"""The messages of a conversation, and the tools a model may call.

A conversation is a sequence of these. What the model produced goes back into it as an
`Assistant`, its thinking included: the model was trained to see its earlier thinking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import ImageError
from magistral_mlx.events import ToolCall

if TYPE_CHECKING:
    import PIL.Image

IMAGE_MODES = ("RGB", "RGBA")


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a user's message: 8-bit RGB, or RGBA where it has transparency, upright.

    `Image.open` makes one from a file, bytes or any PIL image. Raises ImageError for an image
    in another mode.
    """

    image: PIL.Image.Image

    def __post_init__(self) -> None:
        if self.image.mode not in IMAGE_MODES:
            raise ImageError(
                f"an image in mode {self.image.mode} must be converted to RGB or RGBA first: "
                "make it with Image.open(image)."
            )

    @classmethod
    def open(cls, source: str | PathLike[str] | bytes | PIL.Image.Image) -> Image:
        """Open and normalise an image; see `magistral_mlx.chat.images.load_image`."""
        from magistral_mlx.chat.images import load_image

        return cls(load_image(source))


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of thinking in a system prompt, sent between the thinking marks."""

    text: str


@dataclass(frozen=True, slots=True)
class System:
    """A system prompt: plain text, or text and thinking in order.

    A plain string is literal: `[THINK]` in it stays text.
    """

    content: str | tuple[str | Thought, ...]


@dataclass(frozen=True, slots=True)
class User:
    """A user's turn: text, or text and images in the order in which they are sent.

    mistral-common joins neighbouring texts with a blank line, and moves a single image that
    stands after all text to the front, as the model was trained.
    """

    content: str | tuple[str | Image, ...]


@dataclass(frozen=True, slots=True)
class Assistant:
    """An earlier turn of the model: its thinking (None: it did not think), answer, tool calls.

    A call without an id gets one when the prompt is made. The last message of a conversation may
    be one with `prefix`: it is left open, and the model goes on where it ends, inside its thinking
    if there is thinking and no text yet.
    """

    text: str = ""
    thinking: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a tool call. Without `call_id` it answers the next unanswered call."""

    content: str
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """A prompt that goes to the model without the template of a chat.

    Text gets the beginning-of-sequence token before it, and a control token spelled in it stays
    text. Token ids are taken as they are.
    """

    content: str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    parameters: JSON schema of its arguments. strict: hold calls to the schema exactly, or fail if
    it cannot be followed; otherwise arguments follow it as well as they can. text_grammar: Lark
    grammar of the text that a tool takes as its one argument, `input`; "" for other tools.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "object", "properties": {}}
    )
    strict: bool = False
    text_grammar: str = ""


Message = System | User | Assistant | ToolResult
"""One message of a conversation."""
