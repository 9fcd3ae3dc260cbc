"""Loading of image files as upright 8-bit images.

mistral-common does the rest: white behind transparency, resizing, normalisation.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING

from magistral_mlx.chat.image_formats import allowed_formats, describe_unknown
from magistral_mlx.chat.image_modes import to_rgb_or_rgba, turn_upright
from magistral_mlx.errors import ImageError
from magistral_mlx.files import reading

if TYPE_CHECKING:
    import PIL.Image

MAX_PIXELS = 178_956_970  # where Pillow itself refuses


def load_image(source: str | PathLike[str] | bytes | PIL.Image.Image) -> PIL.Image.Image:
    """Load a file, the bytes of one, or a PIL image as 8-bit RGB or RGBA, upright.

    EXIF orientation is applied, of an animation the first frame is taken, 16-bit and floating
    point are scaled to 8 bits, and what may be transparent comes as RGBA. A plain PIL image that
    is already so is given back as it is.

    Raises ImageError for one that is missing, a folder, unreadable, empty, cut short, no
    image, in a format that is not supported, without pixels, or larger than MAX_PIXELS;
    the size is checked before anything is decoded.
    """
    import PIL.Image

    if isinstance(source, PIL.Image.Image):
        return _decode(source, "the image")
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), "the image")
    name = os.fspath(source)
    with reading(name, "image", ImageError), _open_file(Path(source), name) as file:
        return _read(file, name)


def _open_file(path: Path, name: str) -> IO[bytes]:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ImageError(f"{name} is a folder, not an image. Name the files in it one by one.")
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise ImageError(f"{name} is a device or socket, not an image.")
    file = path.open("rb")
    if stat.S_ISREG(mode):
        return file
    with file:  # a pipe, such as a shell's <(command), cannot go back to its beginning
        return io.BytesIO(file.read())


def _read(file: IO[bytes], name: str) -> PIL.Image.Image:
    """Identify and decode; `name` begins the messages."""
    import PIL.Image
    from PIL import UnidentifiedImageError

    head = file.read(64)
    file.seek(0)
    if not head:
        raise ImageError(f"{name} is empty (0 bytes). Copy or download it again.")
    with warnings.catch_warnings():
        # Pillow warns of large images and odd metadata, which are no reason for concern here.
        warnings.simplefilter("ignore")
        try:
            image = PIL.Image.open(file, formats=allowed_formats(head))
        except PIL.Image.DecompressionBombError as error:
            raise ImageError(_too_large(name)) from error
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name} is not an image that can be opened{describe_unknown(head, file)}. "
                "Expected JPEG, PNG, HEIC, WebP, GIF, AVIF, TIFF or BMP: convert it first."
            ) from error
        except Exception as error:
            raise ImageError(_damaged(name, error)) from error
        return _decode(image, name)


def _decode(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Decode into an upright RGB or RGBA image that is independent of the file."""
    import PIL.Image

    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width}×{height}).")
    if width * height > MAX_PIXELS:
        raise ImageError(_too_large(name, f" ({width}×{height})"))
    try:
        image.load()
        converted = to_rgb_or_rgba(turn_upright(image))
    except PIL.Image.DecompressionBombError:
        raise ImageError(_too_large(name)) from None
    except MemoryError:
        raise ImageError(f"{name} ({width}×{height}) does not fit in memory.") from None
    except Exception as error:
        raise ImageError(_damaged(name, error, image.format)) from error
    return converted if type(converted) is PIL.Image.Image else converted.copy()


def _damaged(name: str, error: Exception, format: str | None = None) -> str:
    # Decoders meet damaged data with whatever comes up: OSError, ValueError, struct.error...
    detail = " ".join([*([f"{format}:"] if format else []), *str(error).split()])
    return f"{name} is damaged or cut short ({detail}). Copy or download it again."


def _too_large(name: str, size: str = "") -> str:
    return (
        f"{name} is too large{size}: at most {MAX_PIXELS // 1_000_000} megapixels are opened, as "
        "more may be a decompression bomb. Make it smaller first; the model loses nothing."
    )
