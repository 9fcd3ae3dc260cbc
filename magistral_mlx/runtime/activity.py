"""Live statistics of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a loaded model, in bytes.

    weights: the decoder, and the vision tower once an image has come. caches: keys and values of
    running requests. kept: the prefix cache, which holds earlier prompts and features of images.
    buffers: freed memory that MLX keeps for reuse, in the whole process. limit: the most that all
    of it may take together.
    """

    weights: int = 0
    caches: int = 0
    kept: int = 0
    buffers: int = 0
    limit: int = 0


@dataclass(frozen=True)
class Activity:
    """Requests at this moment, and counts of the prefix cache since the model was loaded.

    running: requests that are being generated. waiting: requests that wait for their turn.
    prompts: prompts that were begun; hits: those whose beginning was cached. prompt_tokens: their
    tokens; reused_tokens: those that were cached. images: images in the part of a prompt that was
    not cached; reused_images: those whose features were cached. disk_problem: why the disk cache
    keeps nothing more, if so.
    """

    running: int = 0
    waiting: int = 0
    prompts: int = 0
    hits: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    images: int = 0
    reused_images: int = 0
    memory: MemoryUse = field(default_factory=MemoryUse)
    disk_problem: str | None = None
