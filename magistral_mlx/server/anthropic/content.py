"""Blocks of messages as the parts of chat messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from magistral_mlx.server.anthropic.schemas import (
    Base64Source,
    ContentSource,
    DocumentBlock,
    FileSource,
    ImageBlock,
    MessageIn,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    VendorBlock,
)
from magistral_mlx.server.document_parts import document_parts
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.request_translation import MessageBuilder, Part, image_part, text_part

Shown = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock


def add_message(builder: MessageBuilder, message: MessageIn, where: str) -> None:
    """Add a message; `where` names it in errors.

    Raises:
        BadRequest: a block in a message of the wrong role.
        DocumentError, ImageError: a document that cannot be read.
    """
    content = message.content
    blocks = [TextBlock(type="text", text=content)] if isinstance(content, str) else content
    match message.role:
        case "system":
            builder.system(parts_of(_only(blocks, TextBlock, where), f"{where}.content"))
        case "assistant":
            _add_assistant(builder, blocks, where)
        case _:
            _add_user(builder, blocks, where)


def _add_assistant(builder: MessageBuilder, blocks: Sequence[Any], where: str) -> None:
    for block in blocks:
        match block:
            case TextBlock():
                builder.text(block.text)
            case ThinkingBlock():
                builder.thinking(block.thinking)
            case ToolUseBlock():
                builder.call(block.name, block.input, block.id)
            case RedactedThinkingBlock() | VendorBlock():
                pass
            case _:
                raise _misplaced(block.type, where, "an assistant's")


def _add_user(builder: MessageBuilder, blocks: Sequence[Any], where: str) -> None:
    """Add the results of tools first, as in the template, then the user's own blocks."""
    said: list[list[Part]] = []
    for n, block in enumerate(blocks):
        here = f"{where}.content[{n}]"
        match block:
            case ToolResultBlock():
                builder.result(_result_parts(block, here), block.tool_use_id)
            case TextBlock() | ImageBlock() | DocumentBlock() | SearchResultBlock():
                said.append(_block_parts(block, here))
            case VendorBlock():
                pass
            case _:
                raise _misplaced(block.type, where, "a user's")
    if said or not blocks:
        builder.user([part for parts in said for part in parts])


def _only(blocks: Sequence[Any], kind: type[TextBlock], where: str) -> list[TextBlock]:
    for block in blocks:
        if not isinstance(block, kind):
            raise _misplaced(block.type, where, "a system")
    return list(blocks)


def _misplaced(kind: str, where: str, whose: str) -> BadRequest:
    return BadRequest(f"{where} holds a block {kind!r}, which has no place in {whose} message.")


def _result_parts(block: ToolResultBlock, where: str) -> list[Part]:
    content = block.content
    if isinstance(content, str):
        parts = [text_part(content)]
    else:
        parts = parts_of(content or (), f"{where}.content")
    if block.is_error:
        parts = [text_part("Error: "), *parts]
    return parts or [text_part("")]


def parts_of(blocks: Iterable[Shown], where: str) -> list[Part]:
    """The parts of some blocks, in order; `where` names their list in errors."""
    return [part for n, block in enumerate(blocks) for part in _block_parts(block, f"{where}[{n}]")]


def _block_parts(block: Shown, where: str) -> list[Part]:
    match block:
        case TextBlock():
            return [text_part(block.text)]
        case DocumentBlock():
            return _document(block, f"{where}.source")
        case SearchResultBlock():
            text = "".join(part.text for part in block.content)
            return [text_part(f"{block.title}\n{block.source}\n\n{text}")]
        case ImageBlock():
            source = block.source
            if isinstance(source, Base64Source):
                url = f"data:{source.media_type};base64,{source.data}"
                return [image_part(url, f"{where}.source.data")]
            return [image_part(source.url, f"{where}.source.url")]


def _document(block: DocumentBlock, where: str) -> list[Part]:
    about = "\n\n".join(text for text in (block.title, block.context) if text)
    before = [text_part(about + "\n\n")] if about else []
    match block.source:
        case TextSource(data=text):
            return [text_part("".join(part["text"] for part in before) + text)]
        case FileSource(data=data):
            context = [text_part(block.context)] if block.context else []
            name = block.title or "document"
            return [*context, *document_parts(data, name, where=f"{where}.data")]
        case ContentSource(content=content):
            if isinstance(content, str):
                return [*before, text_part(content)]
            return [*before, *parts_of(content, f"{where}.content")]
