"""Files in a user's message: text in a named block, a PDF's text or its pages, or an image.

User((*read_document("report.pdf"), "What does it conclude?"))
"""

from __future__ import annotations

import io
import os
import re
import stat
from os import PathLike
from pathlib import PurePath
from typing import Literal, get_args

from magistral_mlx.chat.image_formats import allowed_formats, begins_like, describe_unknown
from magistral_mlx.chat.messages import Image
from magistral_mlx.errors import DocumentError, ImageError, InvalidOption
from magistral_mlx.files import reading, refuse_named_pipe, user_path

PDFMode = Literal["text", "images"]
PDF_MODES: tuple[PDFMode, ...] = get_args(PDFMode)
MAX_BYTES = 64 << 20  # of a file
MAX_TEXT = 16 << 20  # characters; more than any context holds many times over
_HEAD = 1024  # bytes within which a PDF is marked as one, by its standard
_OFFICE = {
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf", ".pages"), "a word processor's document"),
    **dict.fromkeys((".xls", ".xlsx", ".ods", ".numbers"), "a spreadsheet"),
    **dict.fromkeys((".ppt", ".pptx", ".odp", ".key"), "a presentation"),
}
_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def read_document(
    source: str | PathLike[str] | bytes, name: str | None = None, *, pdf: PDFMode = "text"
) -> tuple[str | Image, ...]:
    """Read a file into parts of a user's message.

    A text file becomes one text: its name, and its content in a fenced block. So does a PDF, with
    the numbers of its pages; with pdf="images" its name and an image of each page. An image
    becomes that image.

    Args:
        source: a path, or the bytes of a file.
        name: the file's name in the prompt; the path, or "file", unless given.
        pdf: whether the model gets a PDF's text or sees its pages.

    Raises:
        DocumentError: it is missing, empty, too large, damaged, encrypted, or neither text, PDF
            nor image.
        ImageError: a damaged image.
        MissingExtra: a PDF, and pypdfium2 is not installed.
    """
    if pdf not in PDF_MODES:
        raise InvalidOption(f"pdf is {pdf!r}; it must be 'text' or 'images'.")
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), name or "file"
    elif isinstance(source, str | PathLike):
        data, name = _read_file(source), name or os.fspath(source)
    else:
        raise DocumentError(
            f"a document is a path or the bytes of a file, not {type(source).__name__}."
        )
    return _parts(data, _shown(name), pdf)


def text_block(name: str, text: str, remark: str = "") -> str:
    """A named block of a prompt: the name, and the text between fences that it cannot close."""
    longest = max(map(len, re.findall(r"^[ \t]*(`{3,})", text, re.MULTILINE)), default=2)
    fence = "`" * (longest + 1)
    suffix = PurePath(name).suffix[1:]
    language = suffix.lower() if suffix.isalnum() and len(suffix) <= 10 and not remark else ""
    end = "" if text.endswith("\n") else "\n"
    return f"{heading(name, remark)}\n{fence}{language}\n{text}{end}{fence}"


def heading(name: str, remark: str = "") -> str:
    """The line that names a file in a prompt."""
    return f"File: {name} ({remark})" if remark else f"File: {name}"


def _parts(data: bytes, name: str, pdf: PDFMode) -> tuple[str | Image, ...]:
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    if not data:
        raise DocumentError(f"{name} is empty (0 bytes). Copy or download it again.")
    if data.lstrip()[:5] == b"%PDF-":
        return _pdf_parts(data, name, pdf)
    text = _decoded(data)
    if text is not None:
        if not text.strip():
            raise DocumentError(f"{name} holds nothing but blanks. Leave it out.")
        if len(text) > MAX_TEXT:
            raise _too_long(name)
        return (text_block(name, text),)
    if b"%PDF-" in data[:_HEAD]:
        return _pdf_parts(data, name, pdf)
    if any(begins_like(format, data[:64]) for format in allowed_formats(data[:64])):
        try:
            return (Image.open(data),)
        except ImageError as error:
            raise ImageError(str(error).replace("the image", name, 1)) from error
    raise _unreadable(data, name)


def _pdf_parts(data: bytes, name: str, mode: PDFMode) -> tuple[str | Image, ...]:
    from magistral_mlx.chat.pdf import page_images, page_texts

    if mode == "images":
        images = page_images(data, name)
        return heading(name, f"{_pages(len(images))}, as images"), *images
    texts = page_texts(data, name)
    numbered = [
        f"[page {n}]\n{text}" if text else f"[page {n} has no text]"
        for n, text in enumerate(texts, 1)
    ]
    text = "\n\n".join(numbered)
    if len(text) > MAX_TEXT:
        raise _too_long(name)
    return (text_block(name, text, _pages(len(texts))),)


def _pages(count: int) -> str:
    return f"{count} page{'s' * (count != 1)}"


def _decoded(data: bytes) -> str | None:
    """The text of a file with newlines alone at the ends of its lines; None if it is no text."""
    marks = (encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if data.startswith(mark))
    try:
        text = data.decode(next(marks, "utf-8"))
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _unreadable(data: bytes, name: str) -> DocumentError:
    office = _OFFICE.get(PurePath(name).suffix.lower())
    if office:
        return DocumentError(f"{name} is {office}, which is not read here. Save it as PDF or text.")
    kind = describe_unknown(data[:64], io.BytesIO(data))
    if not kind and b"\0" not in data[:4096]:
        return DocumentError(f"{name} is no UTF-8 text. Save it with the encoding UTF-8.")
    return DocumentError(
        f"{name} is a binary file{kind}. Expected text, PDF or an image: convert it first."
    )


def _too_large(name: str) -> DocumentError:
    return DocumentError(
        f"{name} is too large: files of up to {MAX_BYTES >> 20} MiB are read. Take a part of it."
    )


def _too_long(name: str) -> DocumentError:
    return DocumentError(
        f"{name} holds more than {MAX_TEXT >> 20} million characters of text, too much for any "
        "context. Take a part of it."
    )


def _shown(name: str) -> str:
    """A name on one line, without what would not be shown."""
    visible = "".join(c if c.isprintable() else " " for c in name)
    return " ".join(visible.split())[:200] or "file"


def _read_file(source: str | PathLike[str]) -> bytes:
    name = os.fspath(source)
    with reading(name, "file", DocumentError):
        path = user_path(source)
        mode = path.stat().st_mode
        refuse_named_pipe(name, mode)
        if stat.S_ISDIR(mode):
            raise DocumentError(f"{name} is a folder. Name the files in it one by one.")
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise DocumentError(f"{name} is a device or socket, not a file.")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
