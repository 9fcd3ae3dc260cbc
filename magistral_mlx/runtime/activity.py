"""What a loaded model is at, for whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by what they are for.

    weights: of the decoder, and of the vision tower once an image has come. caches: keys and
    values of the answers that run. kept: caches of earlier prompts, and features of images.
    buffers: freed ones that MLX keeps for reuse, in the whole process. limit: what all of it may
    take together.
    """

    weights: int = 0
    caches: int = 0
    kept: int = 0
    buffers: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Activity:
    """What a model is at this moment, and what became of the prompts since it was loaded.

    running: answers that are being generated. waiting: those that wait for their turn.
    prompts: that were begun; hits: those of them that began like an earlier one. prompt_tokens: of
    all prompts; reused_tokens: those that were in the caches already. images: that were begun;
    seen_images: those of them that were looked at before.
    """

    running: int = 0
    waiting: int = 0
    prompts: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    images: int = 0
    seen_images: int = 0
    memory: MemoryUse = field(default_factory=MemoryUse)
