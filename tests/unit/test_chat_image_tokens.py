"""A cap on the tokens of an image."""

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.image import ImageConfig, transform_image

from magistral_mlx.chat.image_tokens import image_prompt_tokens, largest_side
from magistral_mlx.chat.messages import Image, User
from magistral_mlx.chat.prompt import Prompt, encode
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import ImageError, InvalidOption
from tests.tekken import small_tokenizer, tekken_folder

_CONFIG = ImageConfig(image_patch_size=14, max_image_size=1540, spatial_merge_size=2)


def noise(width: int, height: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def prompt_of(image: PIL.Image.Image, cap: int | None) -> Prompt:
    return encode([User((Image(image), "?"))], small_tokenizer(), image_tokens=cap)


def tokens_of_image(prompt: Prompt) -> int:
    special = small_tokenizer().special
    ids = (special.image, special.image_break, special.image_end)
    return int(np.isin(prompt.tokens, ids).sum())


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), cap=st.integers(2, 4000))
def test_the_largest_side_is_the_largest_that_keeps_the_cap(width: int, height: int, cap: int):
    side = largest_side(width, height, _CONFIG, cap)

    def tokens(side: int) -> int:
        return image_prompt_tokens(width, height, ImageConfig(14, side, 2))

    assert tokens(side) <= cap or side == 1
    assert side == 1540 or tokens(side + 1) > cap


def test_a_larger_image_is_scaled_down_to_the_cap_by_the_same_rule():
    image = noise(700, 420)
    prompt = prompt_of(image, 100)
    assert tokens_of_image(prompt) <= 100
    (pixels,) = prompt.images
    _, height, width = pixels.shape
    np.testing.assert_array_equal(pixels, transform_image(image, (width, height)))
    side = largest_side(700, 420, _CONFIG, 100)
    assert max(width, height) == -(-side // 28) * 28


def test_an_image_within_the_cap_stays_as_it_is():
    image = noise(300, 100)
    free, capped = prompt_of(image, None), prompt_of(image, 48)
    assert tokens_of_image(free) == 48
    np.testing.assert_array_equal(capped.tokens, free.tokens)
    np.testing.assert_array_equal(capped.images[0], free.images[0])


def test_a_cap_that_no_image_keeps_is_refused():
    with pytest.raises(InvalidOption, match="image_tokens is 1; it must be 2 or more"):
        prompt_of(noise(60, 60), 1)


def test_a_narrow_image_fits_any_cap():
    prompt = prompt_of(noise(3000, 1), 2)
    assert tokens_of_image(prompt) == 2
    assert prompt.images[0].shape == (3, 28, 28)


def test_text_is_not_touched_by_the_cap():
    with_cap = encode([User("Hello")], small_tokenizer(), image_tokens=2)
    np.testing.assert_array_equal(
        with_cap.tokens, encode([User("Hello")], small_tokenizer()).tokens
    )


def test_a_tokenizer_without_images_still_says_so():
    blind = Tokenizer.load(tekken_folder(images=False))
    with pytest.raises(ImageError, match="reads text only"):
        encode([User((Image(noise(60, 60)), "?"))], blind, image_tokens=10)
