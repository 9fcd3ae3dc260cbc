"""Images that a caller may pass: paths, bytes, PIL images and data URLs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from os import PathLike
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from magistral_mlx.chat.messages import Image
from magistral_mlx.errors import ImageError

if TYPE_CHECKING:
    import PIL.Image

ImageSource: TypeAlias = "str | PathLike[str] | bytes | PIL.Image.Image | Image"
Images: TypeAlias = "ImageSource | Iterable[ImageSource]"


def to_images(images: Images) -> list[Image]:
    """One image or several, opened.

    Raises:
        ImageError: one that cannot be opened.
    """
    if isinstance(images, str | bytes | PathLike | Image) or _is_pil(images):
        return [open_image(images)]  # type: ignore[arg-type]
    if not isinstance(images, Iterable):
        raise ImageError(f"images are a list of images, not {kind_of(images)}.")
    return [open_image(source) for source in images]


def open_image(source: ImageSource) -> Image:
    """An image from a path, a data URL, bytes, a PIL image, or as it is.

    Raises:
        ImageError: it cannot be opened, or lies on the web.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, str) and source[:5].lower() == "data:":
        return Image.open(data_of_url(source))
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        raise ImageError(
            f"{source[:200]} is a web address, and nothing is downloaded here. Fetch the image "
            "first, and name its file."
        )
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    if not (isinstance(source, str | bytes | PathLike) or _is_pil(source)):
        raise ImageError(
            f"an image is a path, bytes, a PIL image or a data URL, not {kind_of(source)}."
        )
    return Image.open(source)


def image_of_url(url: str, where: str, *, local_files: bool) -> Image:
    """The image that a dict's URL stands for: a data URL, a file:// URL or a path.

    Raises:
        ImageError: it cannot be opened, lies on the web, or is a file where none is allowed.
    """
    scheme = url[:8].partition(":")[0].lower()  # of "https:" at most
    if scheme in ("http", "https"):
        raise ImageError(
            f"{where} is a web address, and nothing is downloaded here. Fetch the image first, "
            "and give its bytes or a data URL."
        )
    if scheme != "data" and not local_files:
        raise ImageError(f"{where} must be a data URL (data:image/png;base64,…).")
    try:
        return open_image(_path_of(url) if scheme == "file" else url)
    except ImageError as error:
        raise ImageError(f"{where}: {error}") from error


def _path_of(url: str) -> str:
    """The path in a file:// URL.

    Raises:
        ImageError: it is malformed.
    """
    try:
        return unquote(urlsplit(url).path)
    except ValueError as error:
        raise ImageError(f"{url[:200]} is no URL: {error}.") from error


def data_of_url(url: str) -> bytes:
    """Decode the bytes in a data URL.

    Raises:
        ImageError: it is malformed.
    """
    head, comma, data = url.partition(",")
    if not comma:
        raise ImageError("the data URL has no comma, after which the image's data stands.")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(data)
    try:
        return base64.b64decode("".join(unquote(data).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"the data URL is not valid base64: {error}.") from error


def _is_pil(value: object) -> bool:
    """Whether it is a PIL image, without importing PIL to find out that it is none."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def kind_of(value: object) -> str:
    """The type of a value, for an error."""
    return "None" if value is None else type(value).__name__
