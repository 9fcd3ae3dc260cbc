"""Which wishes a conversion accepts, and what each means."""

import pytest

from magistral_convert import ConvertOptions
from magistral_mlx.errors import InvalidOption
from magistral_mlx.quantization import Quantization


@pytest.mark.parametrize(
    ("asked", "scheme"),
    [
        ({}, Quantization(4, 64)),
        ({"recipe": "4bit"}, Quantization(4, 64)),
        ({"bits": 3, "group_size": 128}, Quantization(3, 128)),
        ({"mode": "mxfp4"}, Quantization(4, 32, "mxfp4")),
        ({"mode": "nvfp4"}, Quantization(4, 16, "nvfp4")),
        ({"mode": "mxfp8", "bits": 8, "group_size": 32}, Quantization(8, 32, "mxfp8")),
        ({"recipe": "3bit"}, Quantization(3, 64)),
        ({"recipe": "5bit", "group_size": 32}, Quantization(5, 32)),
        ({"mode": "mxfp4", "recipe": "4bit"}, Quantization(4, 32, "mxfp4")),
    ],
)
def test_what_is_left_out_gets_the_modes_own_figures(asked: dict, scheme: Quantization):
    assert ConvertOptions(**asked).scheme == scheme


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"bits": 7}, "--bits 7 is not possible. Choose one of 2, 3, 4, 5, 6, 8."),
        ({"group_size": 48}, "--group-size 48 is not possible. Choose one of 32, 64, 128."),
        ({"mode": "fp4"}, "--mode fp4 is not possible"),
        (
            {"recipe": "best"},
            "--recipe best is not possible. Choose one of 3bit, 4bit, 4bit-plus, 5bit,",
        ),
        ({"mode": "mxfp4", "bits": 8}, "--mode mxfp4 means 4 bits and groups of 32, so --bits 8"),
        ({"mode": "mxfp8", "bits": 4}, "--mode mxfp8 means 8 bits"),
        ({"mode": "nvfp4", "group_size": 32}, "Leave --group-size out, or use --mode affine."),
        ({"recipe": "4bit-plus", "bits": 6}, "--recipe 4bit-plus means 4 bits and --bits 6"),
        ({"recipe": "4bit", "bits": 8}, "Give one of the two."),
        ({"recipe": "4bit", "mode": "mxfp8"}, "--mode mxfp8 means 8"),
        ({"recipe": "3bit", "bits": 4}, "--recipe 3bit means 3 bits and --bits 4 means 4"),
        ({"recipe": "16gb", "bits": 3}, "--recipe 16gb chooses the bits of each matrix"),
        ({"recipe": "24gb", "mode": "mxfp4"}, "which --mode mxfp4 contradicts"),
        ({"recipe": "24gb", "calibration": ("none",)}, "which --calibration none contradicts"),
        ({"recipe": "16gb", "target_bits": 3.2}, "which --recipe contradicts"),
        ({"target_size": 0}, "Give a size such as 12.5GB"),
        ({"target_size": 0, "bits": 3}, "which --bits contradicts"),
        ({"calibration": ("default",), "calibration_tokens": 0}, "Give a positive number"),
        ({"recipe": "4bit-plus", "mode": "mxfp4"}, "which --mode mxfp4 does not have"),
    ],
)
def test_a_conflict_is_refused_and_says_how_to_solve_it(asked: dict, message: str):
    with pytest.raises(InvalidOption) as error:
        ConvertOptions(**asked)
    assert message in str(error.value)


def test_labels_tell_conversions_apart():
    labels = {
        ConvertOptions(**asked).label
        for asked in (
            {},
            {"bits": 6},
            {"group_size": 32},
            {"recipe": "4bit-plus"},
            {"recipe": "4bit-plus", "group_size": 128},
            {"recipe": "16gb"},
            {"recipe": "24gb"},
            {"mode": "mxfp4"},
            {"mode": "mxfp8", "quantize_vision": True},
            {"quantize_vision": True},
        )
    }
    assert labels == {
        "4bit",
        "6bit",
        "4bit-g32",
        "4bit-plus",
        "4bit-plus-g128",
        "16gb",
        "24gb",
        "mxfp4",
        "mxfp8-vision",
        "4bit-vision",
    }


def test_the_recipe_4bit_is_the_default_under_another_name():
    assert ConvertOptions(recipe="4bit").label == ConvertOptions().label
