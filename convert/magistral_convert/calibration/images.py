"""Images for the calibration of vision tower and projector.

Those that the demo draws, which ships with the package, and a few of other kinds: a page of text, a
chart, shades with the grain of a photograph, a dark screen. Sides are whole squares of patches, so
that nothing is resized, and the same version of Pillow draws the same pixels.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import PIL.Image
from mistral_common.tokens.tokenizers.image import DATASET_MEAN, DATASET_STD
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont

from magistral_convert.calibration import memory
from magistral_mlx.config import ModelConfig
from magistral_mlx.demo.cases import make_case

Pixels = NDArray[np.float32]  # (H, W, 3), normalized

_PARAGRAPH = (
    "Opening hours: the reading room is open on weekdays from nine to six and on Saturdays from "
    "ten to two. Bags go into the lockers, pencils are allowed and pens are not. Maps before 1850 "
    "must be ordered a day ahead. Copies cost 20 cents a page; ask at the desk for larger ones."
)


def calibration_images(config: ModelConfig) -> list[Pixels]:
    """Draw the images, two of each of `IMAGE_SIZES`, normalized as the model expects."""
    assert config.vision is not None
    unit = config.vision.patch_size * config.spatial_merge_size
    sizes = [(width * unit, height * unit) for width, height in memory.IMAGE_SIZES]
    drawn = [
        *make_case("two_images", 11, (sizes[0], sizes[1])).images,
        *make_case("two_images", 12, (sizes[2], sizes[3])).images,
    ]
    draw = (_page, _chart, _grain, _screen)
    drawn += [kind(size) for kind, size in zip(draw, sizes, strict=False)]
    mean, deviation = (np.array(part, np.float32) for part in (DATASET_MEAN, DATASET_STD))
    return [
        ((np.asarray(image, np.float32) / 255 - mean) / deviation).astype(np.float32)
        for image in drawn
    ]


def images_identity(images: Sequence[Pixels]) -> str:
    """Digest of all pixels."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(str(image.shape).encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


def _page(size: tuple[int, int]) -> PIL.Image.Image:
    """Black text on paper, in two sizes."""
    image = PIL.Image.new("RGB", size, (250, 248, 240))
    pen = ImageDraw.Draw(image)
    width, height = size
    margin, line = width // 16, max(8, height // 22)
    large, small = ImageFont.load_default(1.6 * line), ImageFont.load_default(0.8 * line)
    pen.text((margin, margin), "Library", (20, 20, 20), large)
    text, top = "", margin + 3 * line
    for word in _PARAGRAPH.split():
        if pen.textlength(f"{text} {word}", small) > width - 2 * margin:
            pen.text((margin, top), text, (30, 30, 40), small)
            text, top = "", top + line
        text = f"{text} {word}".strip()
    pen.text((margin, top), text, (30, 30, 40), small)
    return image


def _chart(size: tuple[int, int]) -> PIL.Image.Image:
    """Bars with axes, a line and labels."""
    image = PIL.Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    width, height = size
    left, bottom = width // 8, height - height // 8
    font = ImageFont.load_default(max(8, height // 30))
    rng = random.Random("chart")
    bars = [rng.random() for _ in range(9)]
    step = (width - left) / (len(bars) + 0.5)
    points = []
    for number, share in enumerate(bars):
        x, top = left + step * (number + 0.25), bottom - share * (bottom - height // 10)
        colour = (40 + 20 * number, 90, 200 - 15 * number)
        pen.rectangle((x, top, x + step * 0.6, bottom), fill=colour)
        pen.text((x, bottom + 2), str(2016 + number)[2:], "black", font)
        points.append((x + step * 0.3, (top + bottom) / 2))
    pen.line(points, fill=(220, 60, 40), width=max(1, height // 100))
    pen.line((left, height // 20, left, bottom, width, bottom), fill="black", width=2)
    for mark in range(5):
        y = bottom - mark * (bottom - height // 10) / 4
        pen.line((left - 4, y, left, y), fill="black")
        pen.text((2, y - height // 60), f"{25 * mark} %", "black", font)
    return image


def _grain(size: tuple[int, int]) -> PIL.Image.Image:
    """Noise of all scales in three colours: the statistics of a photograph without a subject."""
    width, height = size
    rng = random.Random("grain")
    planes = np.zeros((height, width, 3))
    cells = 2
    while cells <= min(size):
        noise = np.array([[rng.random() for _ in range(3 * cells)] for _ in range(cells)])
        coarse = PIL.Image.fromarray((255 * noise.reshape(cells, cells, 3)).astype(np.uint8))
        fine = coarse.resize(size, PIL.Image.Resampling.BICUBIC)
        planes += np.asarray(fine, np.float64) / cells
        cells *= 2
    low, high = planes.min(), planes.max()
    return PIL.Image.fromarray((255 * (planes - low) / (high - low)).astype(np.uint8))


def _screen(size: tuple[int, int]) -> PIL.Image.Image:
    """Bright lines of code on a dark window with a bar and buttons."""
    image = PIL.Image.new("RGB", size, (24, 26, 32))
    pen = ImageDraw.Draw(image)
    width, height = size
    line = max(8, height // 20)
    font = ImageFont.load_default(0.75 * line)
    pen.rectangle((0, 0, width, line), fill=(58, 62, 74))
    for number, colour in enumerate(((230, 90, 80), (230, 190, 70), (90, 190, 90))):
        x = line * (number + 0.3)
        pen.ellipse((x, 0.25 * line, x + 0.5 * line, 0.75 * line), fill=colour)
    code = (
        "def total(prices, rate=0.2):",
        "    net = sum(prices)",
        "    tax = round(net * rate, 2)",
        "    if net > 1_000:",
        "        net *= 0.97  # discount",
        "    return net + tax",
        "",
        ">>> total([19.9, 5, 74.25])",
        "118.98",
    )
    colours = ((210, 210, 215), (150, 200, 120), (120, 170, 230), (220, 160, 110))
    for number, text in enumerate(code):
        colour = colours[number % len(colours)]
        pen.text((line, (number + 1.6) * 1.4 * line), text, colour, font)
    return image
