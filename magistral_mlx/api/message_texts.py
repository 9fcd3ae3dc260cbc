"""The texts of a message, each with the name of its field, and whether they can be encoded."""

from __future__ import annotations

from collections.abc import Iterator

from magistral_mlx.chat.messages import Assistant, Message, System, Thought, ToolResult, User
from magistral_mlx.errors import PromptError
from magistral_mlx.option_spec import half_pair


def check_message(message: Message, where: str) -> None:
    """Check that all texts of a message can be encoded; `where` names it in errors.

    Raises:
        PromptError: naming the field that holds half of a surrogate pair.
    """
    for field, text in _texts(message):
        if isinstance(text, str):
            check_text(text, f"{where}.{field}")


def check_text(text: str, where: str) -> None:
    """Check that a text of a prompt can be encoded.

    Raises:
        PromptError: it holds half of a surrogate pair.
    """
    if problem := half_pair(text):
        raise PromptError(f"{where} is not Unicode text: {problem}.")


def _texts(message: Message) -> Iterator[tuple[str, object]]:
    """The texts of a message by the names of their fields."""
    match message:
        case System(str(text)) | User(str(text)):
            yield "content", text
        case System(tuple(parts)) | User(tuple(parts)):
            for n, part in enumerate(parts):
                yield f"content[{n}]", part.text if isinstance(part, Thought) else part
        case ToolResult(content, call_id):
            yield "content", content
            yield "call_id", call_id
        case Assistant(text, thinking, calls):
            yield "text", text
            yield "thinking", thinking
            for n, call in enumerate(calls):
                yield f"tool_calls[{n}].name", call.name
                yield f"tool_calls[{n}].arguments", call.arguments
                yield f"tool_calls[{n}].id", call.id
