"""Batches of training examples. A batch holds one kind, and images of one grid at each place."""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from magistral_mlx.demo.cases import (
    COLOURS,
    LONGEST_WIDE,
    SEEDS,
    SHAPES,
    SHORTEST_SIDE,
    Case,
    Drawing,
    Kind,
    make_case,
    random_size,
)
from training.prompts import Example, Prompter

CELL = 28  # pixels a side that one image token stands for
TEXT_BATCH = 48
IMAGE_BATCHES = {"one_image": (8, 64), "two_images": (6, 32)}  # least, most
PATCHES_A_BATCH = 5000
WITHOUT_SYSTEM = 0.125  # of the batches have no system prompt
# Training seeds from here on are for the eye during training, and never trained on.
VALIDATION = 900_000_000


@dataclass(frozen=True)
class Batch:
    """ids, labels (B, L), labels -100 where nothing is learned; one (B, 3, H, W) an image.

    truths: for each image the numbers of its colour and its shape, (B, 2).
    """

    ids: Tensor
    labels: Tensor
    pixels: list[Tensor]
    truths: list[Tensor]


def training_cases(rng: Random, kind: Kind, largest: int = LONGEST_WIDE) -> list[Case]:
    """Cases of a kind for one batch; their images share a grid, sides up to `largest`."""

    def seed() -> int:
        return int(rng.random() * VALIDATION)

    if kind == "text":
        return [make_case(kind, seed()) for _ in range(TEXT_BATCH)]
    places = 1 if kind == "one_image" else 2
    grids = [_grid(rng, largest) for _ in range(places)]
    patches = sum(4 * across * down for across, down in grids)
    least, most = IMAGE_BATCHES[kind]
    count = max(least, min(most, PATCHES_A_BATCH // patches))
    return [
        make_case(kind, seed(), tuple(_size_within(rng, grid) for grid in grids))
        for _ in range(count)
    ]


def collate(examples: list[Example], pad: int = 11) -> Batch:
    """Pad on the right; the label at a place is the token that follows it."""
    length = max(len(e.prompt) + len(e.target) for e in examples) - 1
    ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), -100)
    for row, e in enumerate(examples):
        whole = e.prompt + e.target
        ids[row, : len(whole) - 1] = torch.tensor(whole[:-1])
        labels[row, len(e.prompt) - 1 : len(whole) - 1] = torch.tensor(e.target)
    places = range(len(examples[0].pixels))
    return Batch(
        ids,
        labels,
        [torch.from_numpy(np.stack([e.pixels[place] for e in examples])) for place in places],
        [torch.tensor([_truth(e.case.drawings[place]) for e in examples]) for place in places],
    )


def training_batch(rng: Random, prompter: Prompter, kind: Kind) -> Batch:
    """A batch of a kind for the common training."""
    with_system = rng.random() >= WITHOUT_SYSTEM
    cases = training_cases(rng, kind)
    return collate([prompter.example(case, with_system) for case in cases])


def tower_batch(rng: Random, prompter: Prompter, largest: int) -> Batch:
    """A batch of single images with sides up to `largest`."""
    cases = training_cases(rng, "one_image", largest)
    return collate([prompter.example(case) for case in cases])


def validation_examples(prompter: Prompter, kind: Kind, count: int) -> list[Example]:
    """Examples of a kind that are neither trained on nor held out for the final score."""
    seeds = SEEDS["training"][VALIDATION : VALIDATION + count]
    return [prompter.example(make_case(kind, seed)) for seed in seeds]


def _grid(rng: Random, largest: int) -> tuple[int, int]:
    while True:
        width, height = random_size(rng)
        if max(width, height) <= largest:
            return -(-width // CELL), -(-height // CELL)


def _size_within(rng: Random, grid: tuple[int, int]) -> tuple[int, int]:
    """A size in pixels that becomes this grid of image tokens."""
    width, height = (
        max(SHORTEST_SIDE, CELL * (side - 1) + 1 + int(rng.random() * CELL)) for side in grid
    )
    return min(width, LONGEST_WIDE), min(height, LONGEST_WIDE)


def _truth(drawing: Drawing) -> tuple[int, int]:
    return list(COLOURS).index(drawing.colour), SHAPES.index(drawing.shape)
