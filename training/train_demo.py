"""Train the demo checkpoint from nothing, with a fixed seed, and write its folder.

    python -m training.train_demo --state /tmp/demo-training

First the vision tower and the projector, with two linear heads for colour and shape: through the
language loss alone they never learn shapes. Then everything together, the heads still there, lest
shapes are forgotten before the decoder has learned to read them. Later the decoder's matrices are
at 4 bits in most steps, so that the conversion costs next to nothing. The state is saved every few
minutes; the same command goes on where it was.
"""

import argparse
import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Mistral3ForConditionalGeneration

from magistral_mlx.demo.cases import COLOURS, KINDS, LONGEST_WIDE, SHAPES, Kind
from training.batches import Batch, collate, tower_batch, training_batch, validation_examples
from training.checkpoint import write_checkpoint
from training.model import (
    RANKS,
    SeenHeads,
    demo_config,
    four_bit_decoder,
    image_embeddings,
    target_logits,
)
from training.prompts import Example, Prompter
from training.tekken import write_tekken

SEED = 7
TOWER_STEPS, TOWER_RATE, SMALL_IMAGE = 1000, 1e-3, 170
WARM_UP, FLOOR = 100, 0.03
EYES_RATE, SEEN_WEIGHT = 0.3, 0.5  # of tower and projector; of the heads' loss, when all learn
BETAS, DECAY, CLIP = (0.9, 0.98), 0.01, 1.0
FOUR_BITS_FROM = 2100  # the step; from there on three of four rounds of four steps
LOOK_EVERY, SAVE_EVERY = 100, 180.0  # steps, seconds
SAMPLES = 60  # of each kind, looked at during training
DESTINATION = Path(__file__).parents[1] / "magistral_mlx" / "demo" / "checkpoint"


def rate_at(step: int, steps: int, peak: float) -> float:
    """Learning rate: a linear rise, then a cosine down to 3 % of the peak."""
    if step < WARM_UP:
        return peak * (step + 1) / WARM_UP
    share = (step - WARM_UP) / max(1, steps - WARM_UP)
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * share)) / 2)


def update(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One clipped step of the optimizer at this learning rate, then no gradients are left."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["share"]
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], CLIP)
    optimizer.step()
    optimizer.zero_grad()


def new_optimizer(*groups: tuple[float, list[nn.Parameter]]) -> torch.optim.AdamW:
    """AdamW over groups of parameters, each with its share of the rate that `update` is given."""
    shares = [{"params": parameters, "share": share} for share, parameters in groups]
    return torch.optim.AdamW(shares, betas=BETAS, weight_decay=DECAY)


def eyes(model: Mistral3ForConditionalGeneration) -> list[nn.Parameter]:
    """The weights that turn pixels into image embeddings."""
    parts = (model.model.vision_tower, model.model.multi_modal_projector)
    return [p for part in parts for p in part.parameters()]


def rest(model: Mistral3ForConditionalGeneration) -> list[nn.Parameter]:
    """The decoder's weights and the head's."""
    return [*model.model.language_model.parameters(), *model.lm_head.parameters()]


@dataclass(frozen=True)
class Cycle:
    """A stretch of the common training: one rise and fall of the rate, kinds in one rhythm."""

    steps: int
    rate: float
    rhythm: tuple[Kind, ...]


CYCLES = (
    Cycle(2800, 2e-3, ("one_image", "text", "two_images", "text")),
    # Two images and sums come last: more of them.
    Cycle(1600, 1e-3, ("two_images", "text", "one_image", "text", "two_images", "text")),
)
STEPS = sum(cycle.steps for cycle in CYCLES)


def plan_of(step: int) -> tuple[float, Kind]:
    """Learning rate and kind of a step of the common training."""
    for cycle in CYCLES:
        if step < cycle.steps:
            kind = cycle.rhythm[step % len(cycle.rhythm)]
            return rate_at(step, cycle.steps, cycle.rate), kind
        step -= cycle.steps
    raise ValueError(f"the training has {STEPS} steps")


class TrainingState:
    """Checkpoint to resume training from: phase, step, weights, optimizer."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.pt"
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None at the beginning."""
        return torch.load(self._path, weights_only=True) if self._path.exists() else None

    def save(
        self,
        phase: str,
        step: int,
        model: nn.Module,
        heads: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Write the state whole, under a temporary name first."""
        partial = self._path.with_suffix(".partial")
        state = {
            "phase": phase,
            "step": step,
            "model": model.state_dict(),
            "heads": heads.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save(state, partial)
        os.replace(partial, self._path)
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last save lies long enough back."""
        return time.monotonic() - self._saved_at > SAVE_EVERY


def train_eyes(
    model: Mistral3ForConditionalGeneration,
    heads: SeenHeads,
    prompter: Prompter,
    state: TrainingState,
) -> None:
    """Teach tower and projector colours and shapes, through two linear heads on the embeddings."""
    optimizer = new_optimizer((1.0, [*eyes(model), *heads.parameters()]))
    start, saved = 0, state.load()
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    began, shares = time.monotonic(), []
    for step in range(start, TOWER_STEPS):
        largest = SMALL_IMAGE if step < 0.6 * TOWER_STEPS else LONGEST_WIDE
        batch = tower_batch(Random(f"tower {SEED} {step}"), prompter, largest)
        loss, right = heads(image_embeddings(model, batch.pixels[0]), batch.truths[0])
        loss.backward()
        update(optimizer, rate_at(step, TOWER_STEPS, TOWER_RATE))
        shares.append(right.float().mean(0))
        if (step + 1) % LOOK_EVERY == 0:
            colour, shape = torch.stack(shares[-LOOK_EVERY:]).mean(0).tolist()
            seconds = time.monotonic() - began
            say(f"eyes {step + 1}: colour {colour:.3f} shape {shape:.3f} ({seconds:.0f} s)")
        if state.is_due():
            state.save("eyes", step + 1, model, heads, optimizer)


def train_together(
    model: Mistral3ForConditionalGeneration,
    heads: SeenHeads,
    prompter: Prompter,
    state: TrainingState,
) -> None:
    """Train every weight on sums and images through the language loss, the heads helping."""
    optimizer = new_optimizer((EYES_RATE, [*eyes(model), *heads.parameters()]), (1.0, rest(model)))
    start, saved = 0, state.load()
    if saved and saved["phase"] == "together":
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    samples = {kind: validation_examples(prompter, kind, SAMPLES) for kind in KINDS}
    began, losses, shares = time.monotonic(), [], [torch.zeros(2)]
    for step in range(start, STEPS):
        rate, kind = plan_of(step)
        batch = training_batch(Random(f"batch {SEED} {step}"), prompter, kind)
        at_four_bits = step >= FOUR_BITS_FROM and step // 4 % 4 != 0
        with four_bit_decoder(model) if at_four_bits else nullcontext():
            seen = [image_embeddings(model, pixels) for pixels in batch.pixels]
            loss = language_loss(model, batch, seen)
            losses.append(loss.item())
            for embeddings, truth in zip(seen, batch.truths, strict=True):
                seen_loss, right = heads(embeddings, truth)
                loss = loss + SEEN_WEIGHT * seen_loss / len(seen)
                shares.append(right.float().mean(0))
            loss.backward()
        update(optimizer, rate)
        if (step + 1) % LOOK_EVERY == 0:
            mean = sum(losses[-LOOK_EVERY:]) / len(losses[-LOOK_EVERY:])
            shape = torch.stack(shares[-LOOK_EVERY:]).mean(0)[1]
            say(
                f"together {step + 1}: loss {mean:.4f} shape {shape:.3f} {look(model, samples)}"
                f" ({time.monotonic() - began:.0f} s)"
            )
        if state.is_due():
            state.save("together", step + 1, model, heads, optimizer)
    state.save("together", STEPS, model, heads, optimizer)


def language_loss(
    model: Mistral3ForConditionalGeneration, batch: Batch, seen: list[Tensor]
) -> Tensor:
    """Mean cross entropy of the assistant's tokens."""
    logits, truth = target_logits(model, batch.ids, batch.labels, seen)
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
        seen = [image_embeddings(model, pixels) for pixels in batch.pixels]
        logits, truth = target_logits(model, batch.ids, batch.labels, seen)
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
    heads = SeenHeads(model.config.text_config.hidden_size, len(COLOURS), len(SHAPES))
    state = TrainingState(options.state)
    saved = state.load()
    if saved:
        say(f"going on in phase {saved['phase']} at step {saved['step']}")
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
    if not saved or saved["phase"] == "eyes":
        train_eyes(model, heads, prompter, state)
    train_together(model, heads, prompter, state)
    write_checkpoint(model, options.out)
    say(f"written to {options.out}")


if __name__ == "__main__":
    main()
