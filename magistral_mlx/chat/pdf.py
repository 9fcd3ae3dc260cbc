"""Texts and page images of PDF files, by PDFium (the extra `pdf`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from magistral_mlx.chat.messages import Image
from magistral_mlx.errors import DocumentError
from magistral_mlx.requirements import check_extra

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument, PdfPage

MAX_PAGES = 2000  # whose text is taken
MAX_PAGE_IMAGES = 64
_LONGEST_SIDE = 1540  # pixels of a page; the model sees no more
_LINE_HYPHEN = "\ufffe"  # PDFium's mark of a hyphen at the end of a line
_lock = threading.Lock()  # PDFium is not made for threads


def page_texts(data: bytes, name: str) -> list[str]:
    """The text of each page.

    Raises:
        DocumentError: it is damaged, encrypted, has too many pages, or no text at all.
        MissingExtra: pypdfium2 is not installed.
    """
    with _opened(data, name, MAX_PAGES, "Take a part of it.") as document:
        texts = [_page_text(page) for page in _pages(document, name)]
    if not any(texts):
        raise DocumentError(
            f"{name} has no text: it may be a scan. Read it as images of its pages instead."
        )
    return texts


def page_images(data: bytes, name: str) -> list[Image]:
    """An RGB image of each page, as large as the model sees it.

    Raises:
        DocumentError: it is damaged, encrypted, or has too many pages.
        MissingExtra: pypdfium2 is not installed.
    """
    advice = "Take a part of it, or its text."
    with _opened(data, name, MAX_PAGE_IMAGES, advice) as document:
        return [_page_image(page) for page in _pages(document, name)]


@contextmanager
def _opened(data: bytes, name: str, most: int, advice: str) -> Iterator[PdfDocument]:
    check_extra(f"reading {name}", "pdf", "pypdfium2")
    import pypdfium2

    with _lock:
        try:
            document = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError as error:
            raise _refusal(error, name) from error
        with closing(document):
            document.init_forms()  # before any page: then what is filled in is drawn as well
            count = len(document)
            if not count:
                raise DocumentError(f"{name} has no pages. Copy or download it again.")
            if count > most:
                raise DocumentError(
                    f"{name} has {count:,} pages, and {most:,} are read at most. {advice}"
                )
            yield document


def _refusal(error: Any, name: str) -> DocumentError:
    import pypdfium2.raw

    if error.err_code in (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY):
        return DocumentError(f"{name} is encrypted. Save a copy without a password, and give that.")
    return DocumentError(f"{name} is damaged or cut short. Copy or download it again.")


def _pages(document: PdfDocument, name: str) -> Iterator[PdfPage]:
    import pypdfium2

    for n in range(len(document)):
        try:
            with closing(document[n]) as page:
                yield page
        except (pypdfium2.PdfiumError, MemoryError) as error:
            raise DocumentError(
                f"page {n + 1} of {name} cannot be read. Save a copy of the file, and give that."
            ) from error


def _page_text(page: PdfPage) -> str:
    with closing(page.get_textpage()) as text:
        found: str = text.get_text_bounded()
    lines = found.replace("\r\n", "\n").replace("\r", "\n").replace(_LINE_HYPHEN, "-")
    return lines.replace("\0", "").strip()


def _page_image(page: PdfPage) -> Image:
    scale = _LONGEST_SIDE / max(*page.get_size(), 1e-3)
    with closing(page.render(scale=scale, rev_byteorder=True)) as bitmap:
        return Image.open(bitmap.to_pil().convert("RGB"))
