"""The supported image formats, and the identification of other files."""

from __future__ import annotations

import warnings
from typing import IO

# Formats as Pillow names them. Left out on purpose: EPS, which goes to Ghostscript, formats
# without a mark at the beginning, as which any file may pass, and rare ones.
FORMATS = (
    "JPEG", "PNG", "WEBP", "HEIF", "GIF", "AVIF", "TIFF", "BMP", "ICO", "ICNS", "JPEG2000", "PPM",
    "PSD", "QOI",
)  # fmt: skip
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# How files begin that are mistaken for images, in lower case.
_OTHERS = (
    (b"%pdf", "it is a PDF"),
    (b"%!ps", "it is PostScript"),
    (b"\xc5\xd0\xd3\xc6", "it is PostScript"),
    (b"<svg", "it is an SVG drawing"),
    (b"<?xml", "it is XML, perhaps an SVG drawing"),
    (b"<!doc", "it is a web page"),
    (b"<html", "it is a web page"),
    (b"\x00\x00\x00\x0cjxl ", "it is JPEG XL"),
    (b"\xff\x0a", "it is JPEG XL"),
    (b"\x1ae\xdf\xa3", "it is a video"),
    (b"pk\x03\x04", "it is a ZIP archive"),
    (b"version https://git-lfs", "it is a Git LFS pointer, not the file itself"),
)


def allowed_formats(head: bytes) -> list[str]:
    """Return the formats that Pillow may try on a file that begins with `head`.

    HEIC support is loaded for files that need it only.
    """
    import PIL.Image

    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        import pillow_heif

        pillow_heif.register_heif_opener()
    PIL.Image.init()
    return [format for format in FORMATS if format in PIL.Image.OPEN]


def describe_unknown(head: bytes, file: IO[bytes]) -> str:
    """Describe a file in none of FORMATS, such as " (it is a PDF)"; "" if unknown."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n") or head
    for magic, kind in _OTHERS:
        if magic in (head[: len(magic)].lower(), start[: len(magic)].lower()):
            return f" ({kind})"
    for format in allowed_formats(head):
        if begins_like(format, head):
            return f" (it begins like {format}, but is damaged or cut short)"
    if head[4:8] == b"ftyp":
        return " (it is a video or a camera's raw file)"
    known = _identify(file)
    return f" (it is {known}, which is not supported)" if known else ""


def begins_like(format: str, head: bytes) -> bool:
    """Whether a file that begins with `head` says that it is of that format."""
    import PIL.Image

    accept = PIL.Image.OPEN[format][1]
    return accept is not None and accept(head[:16]) is True


def _identify(file: IO[bytes]) -> str | None:
    """Return the name of a format that Pillow knows and FORMATS leaves out, or None."""
    import PIL.Image

    others = [id for id in PIL.Image.ID if id not in FORMATS and PIL.Image.OPEN[id][1] is not None]
    try:
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PIL.Image.open(file, formats=others).format
    except Exception:  # only a better message is at stake
        return None
