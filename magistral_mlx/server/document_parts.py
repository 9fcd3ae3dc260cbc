"""Files within requests as parts of a message: text and code in a named block, PDFs, images."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

from magistral_mlx.chat.documents import PDFMode, read_document
from magistral_mlx.chat.messages import Image
from magistral_mlx.errors import DocumentError
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.request_translation import Part, image_part, text_part


def document_parts(
    data: str, name: str, pdf: PDFMode | None = None, *, where: str = "data"
) -> list[Part]:
    """The parts of a file.

    Args:
        data: its bytes in base64, or as a data URL.
        name: its name in the prompt.
        pdf: whether a PDF becomes its text or images of its pages; None for its text, or the
            images if it has none.
        where: the field of the request that holds `data`.

    Raises:
        BadRequest: it is not base64.
        DocumentError, ImageError: it cannot be read.
    """
    if data.startswith("data:"):
        data = data.partition(",")[2]
    elif data.startswith(("http://", "https://")):
        raise BadRequest(
            f"{name} is a web address, and this server fetches no documents. Send the file itself "
            "in base64.",
            param=where,
        )
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"data of {name} is not valid base64: {error}.", param=where) from None
    try:
        return _dicts(read_document(content, name, pdf=pdf or "text"))
    except DocumentError as error:
        if pdf is not None or "has no text" not in str(error):
            raise
        return _dicts(read_document(content, name, pdf="images"))


def _dicts(parts: Sequence[str | Image]) -> list[Part]:
    return [
        text_part(part) if isinstance(part, str) else image_part(_data_url(part)) for part in parts
    ]


def _data_url(image: Image) -> str:
    file = io.BytesIO()
    image.image.save(file, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
