"""Conversion of orientation and pixel formats to upright 8-bit RGB or RGBA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray


def turn_upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """`image` turned and mirrored as EXIF says; itself where EXIF is broken or says nothing."""
    import PIL.Image
    from PIL import ExifTags

    turns = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_270,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_90,
    }
    try:
        turn = turns.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF fails in many ways, and is no reason to refuse the image
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    # Without its EXIF, so that it is not turned again when it is opened again.
    turned.info = {key: turned.info[key] for key in turned.info.keys() & {"transparency"}}
    return turned


def to_rgb_or_rgba(image: PIL.Image.Image) -> PIL.Image.Image:
    """`image` (loaded) as RGB, or as RGBA where it may be transparent; itself if it is that.

    16 bits, 32 bits and floating point are scaled, not clipped.
    """
    transparent = image.has_transparency_data
    if image.mode == "RGBA" or (image.mode == "RGB" and not transparent):
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_high_depth(image)
    if image.mode == "La":  # Pillow converts premultiplied grey to nothing else
        image = image.convert("LA")
    return image.convert("RGBA" if transparent else "RGB")


def _from_high_depth(image: PIL.Image.Image) -> PIL.Image.Image:
    import numpy as np
    import PIL.Image

    values = np.asarray(image)  # (H, W)
    if image.mode.startswith("I;16"):
        grey = _scale(np.arange(65536), 0, 65535)[values]
    else:
        grey = _scale(values, *_black_and_white(values))
    return PIL.Image.fromarray(grey).convert("RGB")


def _black_and_white(values: NDArray[Any]) -> tuple[float, float]:
    """Return the values of black and white, for a format that does not define them.

    Integers: 8 bits if they fit, else 16, the depth of most files that Pillow opens this way.
    Floats: 0 to 1, or 0 to 255. Values outside of that: from the smallest to the largest.
    """
    import numpy as np

    is_float = values.dtype.kind == "f"
    finite = values[np.isfinite(values)] if is_float else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for white in (1, 255) if is_float else (255, 65535):
        if low >= 0 and high <= white:
            return 0, white
    return low, high


def _scale(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    """`values` of any type and shape in 8 bits: `black` becomes 0 and `white` 255, rounded."""
    import numpy as np

    scaled = values.astype(np.float32)
    scaled -= np.float32(black)
    scaled *= np.float32(255 / max(white - black, 1e-12))
    np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.rint(scaled, out=scaled).clip(0, 255).astype(np.uint8)
