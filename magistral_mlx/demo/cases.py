"""The problems that the demo checkpoint solves: sums, one image, two images.

A case is generated from a seed alone, so training, tests and benchmarks refer to the same case by
the same number. Cases of the held-out split are never trained on: sums are split by a hash of
operation and operands, images by disjoint ranges of seeds.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

import PIL.Image
from PIL import ImageDraw

Kind = Literal["text", "one_image", "two_images"]
# Seed strings of the demo's training; other words would generate other cases.
_SEED_WORDS = {"text": "text", "one_image": "one_picture", "two_images": "two_pictures"}
Split = Literal["training", "held_out"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SEEDS = {"training": range(1_000_000_000), "held_out": range(1_000_000_000, 2_000_000_000)}
HELD_OUT_SUMS = 6554 / 65536  # one in ten
LARGEST_OPERAND = 999

ONE_QUESTION = "What is in the picture?"
TWO_QUESTION = "What is in the pictures?"
# Each channel's least and most, so that a shade of the colour is the colour too.
COLOURS = {
    "red": ((190, 255), (0, 60), (0, 60)),
    "green": ((0, 80), (120, 255), (0, 100)),
    "blue": ((0, 80), (0, 110), (170, 255)),
    "yellow": ((225, 255), (205, 255), (0, 80)),
    "black": ((0, 45), (0, 45), (0, 45)),
}
SHAPES = ("circle", "square", "triangle")
SHORTEST_SIDE, LONGEST_WIDE, LONGEST_NARROW = 60, 400, 300
SMALLEST_SHAPE, LARGEST_SHAPE = 0.2, 0.9  # of the image's shorter side
SMOOTHING = 4  # an anti-aliased edge is drawn this many times larger, then averaged


@dataclass(frozen=True)
class Drawing:
    """One shape on a plain background; `image` is RGB, `box` is left, top, side in pixels."""

    image: PIL.Image.Image
    colour: str
    shape: str
    box: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Colour and shape, without an article: `red circle`."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Case:
    """A question with its images, the thinking that leads to the answer, and the answer."""

    kind: Kind
    seed: int
    question: str
    drawings: tuple[Drawing, ...]
    trace: str
    answer: str

    @property
    def images(self) -> list[PIL.Image.Image]:
        """The images in their order before the question."""
        return [drawing.image for drawing in self.drawings]


def cases(kind: Kind, split: Split, count: int, start: int = 0) -> Iterator[Case]:
    """Yield `count` cases of a kind, from the split's seed number `start` on."""
    for seed in SEEDS[split][start : start + count]:
        yield make_case(kind, seed)


def make_case(kind: Kind, seed: int, sizes: tuple[tuple[int, int], ...] | None = None) -> Case:
    """Generate the case of a kind and seed; the seed determines its split (`SEEDS`).

    `sizes` sets the images' (width, height); by default they are drawn from the seed.
    """
    rng = Random(f"{_SEED_WORDS[kind]} {seed}")
    if kind == "text":
        return _text_case(rng, seed)
    count = 1 if kind == "one_image" else 2
    drawings = tuple(draw(rng, sizes[i] if sizes else random_size(rng)) for i in range(count))
    seen = [f"a {drawing.name}" for drawing in drawings]
    if kind == "one_image":
        return Case(kind, seed, ONE_QUESTION, drawings, f"I see {seen[0]}.", _sentence(seen))
    trace = f"First {seen[0]}, then {seen[1]}."
    return Case(kind, seed, TWO_QUESTION, drawings, trace, _sentence(seen))


def is_right(case: Case, answer: str) -> bool:
    """Whether `answer` (the text after the thinking) is correct, ignoring whitespace."""
    return " ".join(answer.split()) == case.answer


# Sums and differences


def sum_case(a: int, b: int, operation: str, seed: int = -1) -> Case:
    """Return the case `What is a + b?` or `What is a - b?` with a digit-by-digit trace.

    Raises:
        ValueError: an operand is not from 0 to 999, or the result would be negative.
    """
    if not (0 <= a <= LARGEST_OPERAND and 0 <= b <= LARGEST_OPERAND):
        raise ValueError(f"operands are {a} and {b}; they must be from 0 to {LARGEST_OPERAND}")
    if operation not in ("+", "-") or (operation == "-" and a < b):
        raise ValueError(f"{a} {operation} {b} is neither a sum nor a difference of 0 or more")
    result = a + b if operation == "+" else a - b
    trace = _trace(a, b, operation)
    return Case("text", seed, f"What is {a} {operation} {b}?", (), trace, str(result))


def split_of_sum(a: int, b: int, operation: str) -> Split:
    """Return the split of a sum, by a hash that is independent of seeds."""
    digest = hashlib.sha256(f"{a} {operation} {b}".encode()).digest()
    share = int.from_bytes(digest[:2], "big") / 65536
    return "held_out" if share < HELD_OUT_SUMS else "training"


def _text_case(rng: Random, seed: int) -> Case:
    split: Split = "held_out" if seed in SEEDS["held_out"] else "training"
    while True:
        a, b, operation = _operand(rng), _operand(rng), "+-"[_whole(rng, 0, 1)]
        if operation == "-" and a < b:
            a, b = b, a
        if split_of_sum(a, b, operation) == split:
            return sum_case(a, b, operation, seed)


def _operand(rng: Random) -> int:
    # Of uniform operands nine in ten have three digits, so half are drawn log-uniformly.
    if rng.random() < 0.5:
        return _whole(rng, 0, LARGEST_OPERAND)
    return int((LARGEST_OPERAND + 1) ** rng.random()) - _whole(rng, 0, 1)


def _trace(a: int, b: int, operation: str) -> str:
    """Steps from the right, `digit + digit + carry = digit,carry`, joined by `; `, and a last
    carry."""
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        value = x + y + carry if operation == "+" else x - y - carry
        after = int(not 0 <= value <= 9)
        steps.append(f"{x}{operation}{y}{operation}{carry}={value % 10},{after}")
        carry = after
    return "; ".join(steps + ["1"] * carry)


# Images


def random_size(rng: Random) -> tuple[int, int]:
    """Draw a log-uniform (width, height) from 60×60 to 400×300 or 300×400."""
    sides = [
        round(SHORTEST_SIDE * (longest / SHORTEST_SIDE) ** rng.random())
        for longest in (LONGEST_WIDE, LONGEST_NARROW)
    ]
    wide, narrow = sides
    return (wide, narrow) if rng.random() < 0.5 else (narrow, wide)


def draw(
    rng: Random, size: tuple[int, int], colour: str | None = None, shape: str | None = None
) -> Drawing:
    """Draw a shape of random size and position in an image of `size` (width, height) pixels."""
    width, height = size
    colour = colour or list(COLOURS)[_whole(rng, 0, len(COLOURS) - 1)]
    shape = shape or SHAPES[_whole(rng, 0, len(SHAPES) - 1)]
    shorter = min(width, height)
    share = SMALLEST_SHAPE + (LARGEST_SHAPE - SMALLEST_SHAPE) * rng.random()
    side = max(round(share * shorter), -int(-SMALLEST_SHAPE * shorter // 1))
    left, top = _whole(rng, 0, width - side), _whole(rng, 0, height - side)
    grey = 255 if rng.random() < 0.5 else _whole(rng, 205, 240)
    ink = tuple(_whole(rng, least, most) for least, most in COLOURS[colour])
    scale = SMOOTHING if rng.random() < 0.5 else 1
    image = PIL.Image.new("RGB", size, (grey, grey, grey))
    image.paste(ink, (left, top), _mask(shape, side, scale))
    return Drawing(image, colour, shape, (left, top, side))


def _mask(shape: str, side: int, scale: int) -> PIL.Image.Image:
    """Mask of the shape in a square of `side` pixels, 0 outside and 255 inside."""
    last = side * scale - 1
    mask = PIL.Image.new("L", (side * scale, side * scale), 0)
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((0, 0, last, last), fill=255)
    elif shape == "square":
        pen.rectangle((0, 0, last, last), fill=255)
    else:
        pen.polygon(((last / 2, 0), (last, last), (0, last)), fill=255)
    return mask.reduce(scale) if scale > 1 else mask


def _sentence(seen: list[str]) -> str:
    text = " and ".join(seen)
    return text[0].upper() + text[1:] + "."


def _whole(rng: Random, least: int, most: int) -> int:
    """Draw an integer from `least` to `most`. Only `random()` is equal in all Python versions."""
    return least + int(rng.random() * (most - least + 1))
