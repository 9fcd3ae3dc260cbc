"""Train the demo checkpoint from nothing, with a fixed seed, and write its folder.

    python -m training.train_demo --state /tmp/demo-training

First the vision tower alone, with two linear heads for colour and shape: through the language loss
alone it never learns shapes. Then everything together, the last quarter with the decoder's matrices
at 4 bits in most steps, so that the conversion costs nothing. The state is saved every few minutes;
the same command goes on where it was.
"""

import argparse
import math
import os
import time
from contextlib import nullcontext
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mistral3ForConditionalGeneration

from magistral_mlx.demo.cases import COLOURS, KINDS, LONGEST_WIDE, SHAPES, Kind
from training.batches import Batch, batches, collate, tower_batch, validation_examples
from training.checkpoint import write_checkpoint
from training.model import (
    RANKS,
    demo_config,
    four_bit_decoder,
    target_logits,
    tower_features,
)
from training.prompts import Example, Prompter
from training.tekken import write_tekken

SEED = 7
TOWER_STEPS, TOWER_RATE, SMALL_PICTURE = 1000, 1e-3, 170
STEPS, RATE, WARM_UP, FLOOR = 3200, 2e-3, 100, 0.03
BETAS, DECAY, CLIP = (0.9, 0.98), 0.01, 1.0
FOUR_BITS_FROM = 0.75  # of the steps; from there on in three of four rounds
RHYTHM: tuple[Kind, ...] = ("one_picture", "text", "two_pictures", "text")
LOOK_EVERY, SAVE_EVERY = 100, 180.0  # steps, seconds
DESTINATION = Path(__file__).parents[1] / "magistral_mlx" / "demo" / "checkpoint"


def rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate: a linear rise, then a cosine down to 3 % of the peak."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    share = (step - WARM_UP) / max(1, steps - WARM_UP)
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * share)) / 2)


def update(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One clipped step of the optimizer at this learning rate, then no gradients are left."""
    (group,) = optimizer.param_groups
    group["lr"] = rate
    nn.utils.clip_grad_norm_(group["params"], CLIP)
    optimizer.step()
    optimizer.zero_grad()


def new_optimizer(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW with this recipe's betas and decay; the rate is set at each step."""
    return torch.optim.AdamW(parameters, betas=BETAS, weight_decay=DECAY)


class TrainingState:
    """What a stopped training needs to go on: phase, step, weights, optimizer."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.pt"
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None at the beginning."""
        return torch.load(self._path, weights_only=True) if self._path.exists() else None

    def save(self, phase: str, step: int, model: nn.Module, optimizer: Any, extra: Any) -> None:
        """Write the state whole, under a temporary name first."""
        partial = self._path.with_suffix(".partial")
        state = {
            "phase": phase,
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "extra": extra,
        }
        torch.save(state, partial)
        os.replace(partial, self._path)
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last save lies long enough back."""
        return time.monotonic() - self._saved_at > SAVE_EVERY


def train_tower(
    model: Mistral3ForConditionalGeneration, prompter: Prompter, state: TrainingState
) -> None:
    """Teach the tower colours and shapes through two linear heads on its mean output."""
    width = model.config.vision_config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, len(COLOURS)), nn.Linear(width, len(SHAPES))])
    optimizer = new_optimizer([*model.model.vision_tower.parameters(), *heads.parameters()])
    start, saved = 0, state.load()
    if saved:
        heads.load_state_dict(saved["extra"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    began, right = time.monotonic(), []
    for step in range(start, TOWER_STEPS):
        largest = SMALL_PICTURE if step < 0.6 * TOWER_STEPS else LONGEST_WIDE
        pixels, *truth = tower_batch(Random(f"tower {SEED} {step}"), prompter, largest)
        mean = tower_features(model, pixels).mean((1, 2))  # (N, D)
        guesses = [head(mean) for head in heads]
        colour_loss, shape_loss = (
            nn.functional.cross_entropy(g, t) for g, t in zip(guesses, truth, strict=True)
        )
        loss = colour_loss + shape_loss
        loss.backward()
        update(optimizer, rate_at(step, TOWER_STEPS, TOWER_RATE))
        hits = [g.argmax(-1) == t for g, t in zip(guesses, truth, strict=True)]
        right.append([hit.float().mean() for hit in hits])
        if (step + 1) % LOOK_EVERY == 0:
            colour, shape = torch.tensor(right[-LOOK_EVERY:]).mean(0).tolist()
            seconds = time.monotonic() - began
            say(f"tower {step + 1}: colour {colour:.3f} shape {shape:.3f} ({seconds:.0f} s)")
        if state.is_due():
            state.save("tower", step + 1, model, optimizer, heads.state_dict())


def train_together(
    model: Mistral3ForConditionalGeneration, prompter: Prompter, state: TrainingState
) -> None:
    """Train every weight on sums and pictures through the language loss."""
    optimizer = new_optimizer(list(model.parameters()))
    start, saved = 0, state.load()
    if saved and saved["phase"] == "together":
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    samples = {kind: validation_examples(prompter, kind, 40) for kind in KINDS}
    began, losses = time.monotonic(), []
    stream = batches(SEED, prompter, RHYTHM, start)
    for step in range(start, STEPS):
        batch = next(stream)
        at_four_bits = step >= FOUR_BITS_FROM * STEPS and step // len(RHYTHM) % 4 != 0
        with four_bit_decoder(model) if at_four_bits else nullcontext():
            loss = language_loss(model, batch)
            loss.backward()
        update(optimizer, rate_at(step, STEPS, RATE))
        losses.append(loss.item())
        if (step + 1) % LOOK_EVERY == 0:
            mean = sum(losses[-LOOK_EVERY:]) / len(losses[-LOOK_EVERY:])
            say(
                f"together {step + 1}: loss {mean:.4f} {look(model, samples)}"
                f" ({time.monotonic() - began:.0f} s)"
            )
        if state.is_due():
            state.save("together", step + 1, model, optimizer, None)
    state.save("together", STEPS, model, optimizer, None)


def language_loss(model: Mistral3ForConditionalGeneration, batch: Batch) -> Tensor:
    """Mean cross entropy of the assistant's tokens."""
    logits, truth = target_logits(model, batch.ids, batch.labels, batch.pixels)
    return nn.functional.cross_entropy(logits, truth)


def look(model: Mistral3ForConditionalGeneration, samples: dict[Kind, list[Example]]) -> str:
    """Share of samples whose every token is the likeliest one: what greedy decoding would say."""
    plain = {kind: share_right(model, examples) for kind, examples in samples.items()}
    with four_bit_decoder(model):
        small = {kind: share_right(model, examples) for kind, examples in samples.items()}
    return " ".join(f"{kind} {plain[kind]:.3f}/{small[kind]:.3f}" for kind in samples)


@torch.no_grad()
def share_right(model: Mistral3ForConditionalGeneration, examples: list[Example]) -> float:
    """Share of examples for which greedy decoding repeats the target token for token."""
    right = 0
    for example in examples:
        batch = collate([example])
        logits, truth = target_logits(model, batch.ids, batch.labels, batch.pixels)
        right += bool((logits.argmax(-1) == truth).all())
    return right / len(examples)


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


def main() -> None:
    """Train, or go on, and write the checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="folder for the training state")
    parser.add_argument("--out", type=Path, default=DESTINATION, help="the checkpoint folder")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    options.state.mkdir(parents=True, exist_ok=True)
    tekken = options.state / "tekken.json"
    write_tekken(tekken, RANKS)
    prompter = Prompter(tekken)
    model = Mistral3ForConditionalGeneration(demo_config()).float()
    state = TrainingState(options.state)
    saved = state.load()
    if saved:
        say(f"going on in phase {saved['phase']} at step {saved['step']}")
        model.load_state_dict(saved["model"])
    if not saved or saved["phase"] == "tower":
        train_tower(model, prompter, state)
    train_together(model, prompter, state)
    write_checkpoint(model, options.out)
    say(f"written to {options.out}")


if __name__ == "__main__":
    main()
