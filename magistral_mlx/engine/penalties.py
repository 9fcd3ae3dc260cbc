"""Penalties for earlier tokens: repetition, presence and frequency.

They are computed on the device, so a token counts before the host knows it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.engine.sampling import Sampling


def penalise_repetition(logits: mx.array, tokens: mx.array, penalty: float) -> mx.array:
    """Divide the positive logits of `tokens`, (n,), by `penalty`, and multiply negative ones.

    Source: CTRL, arXiv 1909.05858, as transformers and mlx-lm apply it.
    """
    tokens = tokens[None]  # (1, n); duplicates are written twice with the same value
    seen = mx.take_along_axis(logits, tokens, axis=-1)
    penalised = mx.where(seen < 0, seen * penalty, seen / penalty)
    return mx.put_along_axis(logits, tokens, penalised, axis=-1)


def penalise_use(logits: mx.array, counts: mx.array, presence: float, frequency: float) -> mx.array:
    """Subtract `presence` from the logits of generated tokens, and `frequency` per occurrence.

    Args:
        counts: (1, vocab_size) float32, occurrences of each token in the output.

    Source: OpenAI's API reference, frequency and presence penalties.
    """
    return logits - counts * frequency - (counts > 0) * presence


PenaltyState = tuple[mx.array | None, mx.array | None]


class Penalties:
    """Penalties of one generation, with the tokens that they depend on."""

    def __init__(self, sampling: Sampling, prompt: NDArray[np.int32], vocab_size: int) -> None:
        self._sampling = sampling
        self._recent: mx.array | None = None  # (n,)
        self._counts: mx.array | None = None  # (1, vocab_size)
        if sampling.repetition_penalty != 1:
            window = sampling.repetition_window
            self._recent = mx.array(prompt if window is None else prompt[-window:])
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._counts = mx.zeros((1, vocab_size), mx.float32)

    @property
    def state(self) -> PenaltyState:
        """State after the tokens added so far. Assign an earlier one to roll back."""
        return self._recent, self._counts

    @state.setter
    def state(self, state: PenaltyState) -> None:
        self._recent, self._counts = state

    def apply(self, logits: mx.array) -> mx.array:
        """Apply the penalties to (1, vocab_size) float32 logits."""
        sampling = self._sampling
        if self._recent is not None and self._recent.size:
            logits = penalise_repetition(logits, self._recent, sampling.repetition_penalty)
        if self._counts is not None:
            logits = penalise_use(
                logits, self._counts, sampling.presence_penalty, sampling.frequency_penalty
            )
        return logits

    def add(self, token: mx.array) -> None:
        """Add a generated token, (1,), which may still be lazy."""
        if self._recent is not None:
            recent = mx.concatenate([self._recent, token.astype(self._recent.dtype)])
            window = self._sampling.repetition_window
            self._recent = recent if window is None else recent[-window:]
        if self._counts is not None:
            self._counts = self._counts.at[:, token].add(1)
