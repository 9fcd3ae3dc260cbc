"""Files that go with a prompt on the command line, and the tokens that they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from magistral_mlx.api.magistral import Magistral
    from magistral_mlx.chat.documents import PDFMode
    from magistral_mlx.chat.messages import Image

    Parts = tuple[str | Image, ...]


def open_images(names: Sequence[str]) -> list[Parts]:
    """Open images, each as the parts of a message that it makes.

    Raises:
        ImageError: one that cannot be opened.
    """
    from magistral_mlx.api.image_inputs import open_image

    return [(open_image(name),) for name in names]


def read_files(names: Sequence[str], pdf: PDFMode = "text") -> list[Parts]:
    """Read files, each as the parts of a message that it makes.

    Raises:
        DocumentError, ImageError, MissingExtra: one that cannot be read.
    """
    from magistral_mlx.chat.documents import read_document

    return [read_document(name, pdf=pdf) for name in names]


def count_images(files: Sequence[Parts]) -> int:
    """Count the images among the parts of files."""
    return sum(not isinstance(part, str) for parts in files for part in parts)


def tokens_of(parts: Parts, magistral: Magistral, image_tokens: int | None) -> int:
    """Count the tokens that the parts of a file take in a prompt.

    Raises:
        ImageError: an image for a model that cannot see.
    """
    from magistral_mlx.api.options import Options
    from magistral_mlx.chat.messages import User

    options = Options(system=None, image_tokens=image_tokens)
    frame = len(magistral.prompt("x", options=options)) - 1
    return len(magistral.prompt(User(parts), options=options)) - frame
