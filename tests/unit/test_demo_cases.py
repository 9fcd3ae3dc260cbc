"""What the demo's problems promise: true arithmetic, honest splits, images as described."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magistral_mlx.demo.cases import (
    COLOURS,
    KINDS,
    SEEDS,
    SHAPES,
    cases,
    is_right,
    make_case,
    split_of_sum,
    sum_case,
)

OPERANDS = st.integers(0, 999)
SPLITS = ("training", "held_out")


def operands(question: str) -> tuple[int, str, int]:
    found = re.fullmatch(r"What is (\d+) ([+-]) (\d+)\?", question)
    assert found, question
    return int(found[1]), found[2], int(found[3])


def test_the_trace_of_a_sum_goes_from_the_right_with_the_carry():
    case = sum_case(37, 85, "+")
    assert case.question == "What is 37 + 85?"
    assert case.trace == "7+5+0=2,1; 3+8+1=2,1; 1"
    assert case.answer == "122"


def test_the_trace_of_a_difference_borrows():
    case = sum_case(412, 97, "-")
    assert case.question == "What is 412 - 97?"
    assert case.trace == "2-7-0=5,1; 1-9-1=1,1; 4-0-1=3,0"
    assert case.answer == "315"


@given(OPERANDS, OPERANDS, st.sampled_from("+-"))
def test_every_trace_is_right_arithmetic_and_its_digits_are_the_answer(a, b, operation):
    if operation == "-" and a < b:
        a, b = b, a
    case = sum_case(a, b, operation)
    digits, carry = "", 0
    for step in case.trace.split("; "):
        if step == "1":
            digits, carry = "1" + digits, 0
            continue
        x, y, before, digit, after = (int(n) for n in re.findall(r"\d", step))
        assert before == carry
        value = x + y + before if operation == "+" else x - y - before
        assert value == digit + (10 * after if operation == "+" else -10 * after)
        digits, carry = str(digit) + digits, after
    assert carry == 0
    assert int(digits) == int(case.answer) == (a + b if operation == "+" else a - b)


@pytest.mark.parametrize(("a", "b", "operation"), [(1000, 1, "+"), (-1, 1, "+"), (3, 5, "-")])
def test_operands_out_of_range_and_negative_results_are_refused(a, b, operation):
    with pytest.raises(ValueError, match=str(a)):
        sum_case(a, b, operation)


@pytest.mark.parametrize("split", SPLITS)
def test_every_sum_of_a_split_hashes_to_that_split_so_none_is_in_both(split):
    for case in cases("text", split, 500):
        a, operation, b = operands(case.question)
        assert split_of_sum(a, b, operation) == split


def test_one_sum_in_ten_is_held_out():
    share = np.mean([split_of_sum(a, b, "+") == "held_out" for a in range(200) for b in range(200)])
    assert share == pytest.approx(0.1, abs=0.01)


def test_the_seeds_of_the_splits_do_not_meet_and_held_out_images_are_not_training_images():
    assert SEEDS["training"].stop <= SEEDS["held_out"].start
    seen = [
        {case.images[0].tobytes() for case in cases("one_image", split, 200)} for split in SPLITS
    ]
    assert len(seen[1]) == 200
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_the_same_case_every_time(kind):
    first, second = make_case(kind, 12), make_case(kind, 12)
    assert (first.question, first.trace, first.answer) == (
        second.question,
        second.trace,
        second.answer,
    )
    assert [i.tobytes() for i in first.images] == [i.tobytes() for i in second.images]


def test_known_seeds_make_known_cases_on_every_python():
    assert make_case("text", 1_000_000_000).question == "What is 272 - 68?"
    assert make_case("one_image", 1_000_000_000).answer == "A yellow triangle."
    assert make_case("two_images", 1_000_000_000).answer == "A green square and a red circle."


def test_images_and_shapes_keep_to_their_sizes():
    wide = tall = 0
    for case in cases("two_images", "held_out", 300):
        for drawing in case.drawings:
            width, height = drawing.image.size
            assert 60 <= min(width, height) <= 300
            assert max(width, height) <= 400
            left, top, side = drawing.box
            assert 0.2 <= side / min(width, height) <= 0.91  # whole pixels
            assert left >= 0
            assert top >= 0
            assert left + side <= width
            assert top + side <= height
            wide += width > 2 * height
            tall += height > 2 * width
    assert wide > 20
    assert tall > 20


def test_a_drawing_shows_its_colour_inside_its_box_and_plain_light_ground_outside():
    for case in cases("one_image", "held_out", 100):
        drawing = case.drawings[0]
        pixels = np.asarray(drawing.image)
        left, top, side = drawing.box
        ink = pixels[top + side - side // 3, left + side // 2]
        assert all(a <= c <= b for c, (a, b) in zip(ink, COLOURS[drawing.colour], strict=True))
        outside = np.ones(pixels.shape[:2], bool)
        outside[top : top + side, left : left + side] = False
        ground = pixels[outside]
        assert (ground == ground[0]).all()
        assert ground[0].min() == ground[0].max() >= 205


def test_a_square_fills_its_box_a_circle_pi_fourths_and_a_triangle_half():
    share = {"square": 1.0, "circle": np.pi / 4, "triangle": 0.5}
    for case in cases("one_image", "held_out", 100):
        drawing = case.drawings[0]
        left, top, side = drawing.box
        pixels = np.asarray(drawing.image.convert("RGB")).astype(int)
        inside = pixels[top : top + side, left : left + side]
        ground = pixels[0, 0] if left or top else pixels[-1, -1]
        painted = (np.abs(inside - ground).sum(-1) > 60).mean()
        assert painted == pytest.approx(share[drawing.shape], abs=0.1)


def test_all_colours_shapes_and_grounds_occur():
    drawings = [case.drawings[0] for case in cases("one_image", "held_out", 200)]
    assert {(d.colour, d.shape) for d in drawings} == {(c, s) for c in COLOURS for s in SHAPES}


def test_the_answers_read_as_the_product_promises():
    thing = f"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
    for case in cases("one_image", "held_out", 50):
        assert case.question == "What is in the picture?"
        assert re.fullmatch(f"A {thing}\\.", case.answer)
        assert case.drawings[0].name in case.trace
    for case in cases("two_images", "held_out", 50):
        assert case.question == "What is in the pictures?"
        assert re.fullmatch(f"A {thing} and a {thing}\\.", case.answer)
        first, second = (drawing.name for drawing in case.drawings)
        assert case.answer == f"A {first} and a {second}."


def test_an_answer_is_right_whatever_the_blanks_around_it_and_wrong_otherwise():
    case = make_case("one_image", 3)
    assert is_right(case, f" {case.answer}\n")
    assert not is_right(case, case.answer.rstrip("."))
    assert not is_right(case, "")
    number = sum_case(37, 85, "+")
    assert is_right(number, "122")
    assert not is_right(number, "The answer is 122")
    assert not is_right(number, "1220")
