"""Pixels of opened images against mistral-common's own image steps on the same image."""

import io

import numpy as np
import PIL.Image
import pytest
from mistral_common.protocol.instruct.chunk import ImageChunk
from mistral_common.tokens.tokenizers.image import ImageConfig, ImageEncoder, SpecialImageIDs

from magistral_mlx.chat.messages import Image, User
from magistral_mlx.chat.prompt import encode
from tests.tekken import small_tokenizer

SIZES = [
    (1, 1),
    (1, 500),
    (28, 28),
    (29, 28),
    (301, 97),
    (640, 480),
    (1540, 1540),
    (1541, 20),
    (3000, 2000),
    (20, 30000),
    (70000, 1),
]


@pytest.fixture(scope="module")
def reference() -> ImageEncoder:
    special = small_tokenizer().special
    assert special.image is not None
    assert special.image_break is not None
    assert special.image_end is not None
    ids = SpecialImageIDs(special.image, special.image_break, special.image_end)
    return ImageEncoder(ImageConfig(14, 1540, 2), ids)


def noise(width: int, height: int, channels: int = 3) -> PIL.Image.Image:
    pixels = np.random.default_rng(width + height).integers(
        0, 256, (height, width, channels), dtype=np.uint8
    )
    return PIL.Image.fromarray(pixels)


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def assert_same(source: bytes, reference: ImageEncoder, image: PIL.Image.Image):
    prompt = encode([User((Image.open(source),))], small_tokenizer())
    theirs = reference(ImageChunk(image=image))
    (pixels,) = prompt.images
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, theirs.image)
    assert prompt.tokens[2:-1].tolist() == theirs.tokens  # between <s>[INST] and [/INST]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_and_tokens_of_every_shape(size: tuple[int, int], reference: ImageEncoder):
    image = noise(*size)
    assert_same(png(image), reference, image)


def test_a_jpeg_is_decoded_as_pillow_decodes_it(reference: ImageEncoder):
    buffer = io.BytesIO()
    noise(333, 222).save(buffer, "JPEG", quality=70)
    assert_same(buffer.getvalue(), reference, PIL.Image.open(io.BytesIO(buffer.getvalue())))


def test_transparency_becomes_white_by_mistral_commons_own_step(reference: ImageEncoder):
    image = noise(100, 60, channels=4)
    assert_same(png(image), reference, image)
    clear = PIL.Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    prompt = encode([User((Image.open(png(clear)),))], small_tokenizer())
    white = reference(ImageChunk(image=PIL.Image.new("RGB", (28, 28), "white"))).image
    np.testing.assert_array_equal(prompt.images[0], white)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "CMYK"])
def test_modes_that_mistral_common_converts_are_the_same_here(mode: str, reference: ImageEncoder):
    image = noise(50, 40).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    assert_same(buffer.getvalue(), reference, image)


def test_a_grey_image_of_16_bits_equals_the_same_one_of_8(reference: ImageEncoder):
    grey = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    deep = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    assert_same(png(deep), reference, PIL.Image.fromarray(grey))
