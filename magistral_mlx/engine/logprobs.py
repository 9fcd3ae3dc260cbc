"""Log-probabilities of sampled and most likely tokens, as OpenAI's API reports them: of the model's
own distribution, before any penalty, mask, temperature or filter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.model.magistral import MagistralModel


@dataclass(frozen=True, slots=True)
class LazyLogprobs:
    """Log-probability of a token, (1,), and ids and log-probabilities of the top k, (k,)."""

    chosen: mx.array
    top_ids: mx.array
    top: mx.array

    def read(self) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Return the token's log-probability, and (id, log-probability) of the top k, the most
        likely first."""
        ids, values = self.top_ids.tolist(), self.top.tolist()
        return float(self.chosen.item()), tuple(zip(ids, values, strict=True))  # type: ignore[arg-type]


def logprobs(logits: mx.array, token: mx.array, top: int) -> LazyLogprobs:
    """Compute natural log-probabilities in float32.

    Args:
        logits: (1, vocab_size), as the model returns them.
        token: (1,) id of the sampled token.
        top: number of most likely tokens to report.
    """
    logits = logits[0].astype(mx.float32)
    values = logits - mx.logsumexp(logits)  # (vocab_size,)
    best = _likeliest(values[None], top)[0]
    return LazyLogprobs(values[token], best, values[best])


class OutputCollector(Protocol):
    """A reader of the decoder's outputs at all positions of a prompt, chunk by chunk."""

    def add(self, model: MagistralModel, h: mx.array, following: NDArray[np.int32]) -> None:
        """Read a chunk.

        Args:
            h: (1, L, D) outputs of the decoder, evaluated.
            following: (n,) ids of the tokens after the first n positions; n <= L.
        """


class PromptLogprobCollector:
    """Log-probabilities of a prompt's tokens after the first, kept on the host during prefill."""

    def __init__(self, top: int, rows: int) -> None:
        """`top`: number of most likely tokens to report. `rows`: positions that go through the
        head at once."""
        self._top, self._rows = top, rows
        self._found: list[tuple[NDArray[np.float32], NDArray[np.uint32], NDArray[np.float32]]] = []

    def add(self, model: MagistralModel, h: mx.array, following: NDArray[np.int32]) -> None:
        """Compute the log-probabilities of the tokens that follow a chunk's positions.

        Args:
            h: (1, L, D) outputs of the decoder.
            following: (n,) ids of the tokens after the first n positions; n <= L.
        """
        for start in range(0, len(following), self._rows):
            tokens = mx.array(following[start : start + self._rows])[:, None]  # (R, 1)
            logits = model.logits(h[:, start : start + len(tokens)])[0].astype(mx.float32)
            total = mx.logsumexp(logits, axis=-1, keepdims=True)
            best = _likeliest(logits, self._top)  # (R, k)
            chosen = mx.take_along_axis(logits, tokens, axis=-1) - total
            values = mx.take_along_axis(logits, best, axis=-1) - total
            mx.eval(chosen, best, values)
            del logits  # before the next rows have theirs
            self._found.append((np.array(chosen[:, 0]), np.array(best), np.array(values)))

    def read(self) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
        """Return, for each token after the first, its log-probability and (id, log-probability) of
        the top k in its place, the most likely first."""
        return [
            (value, tuple(zip(ids, top, strict=True)))
            for chosen, best, values in self._found
            for value, ids, top in zip(chosen.tolist(), best.tolist(), values.tolist(), strict=True)
        ]


def _likeliest(logits: mx.array, top: int) -> mx.array:
    """(R, vocab_size) -> (R, top) ids, the most likely first."""
    if top == 0:
        return mx.zeros((len(logits), 0), mx.uint32)
    if top == 1:
        return mx.argmax(logits, axis=-1, keepdims=True)
    first = logits.shape[-1] - top
    best = mx.argpartition(logits, kth=first, axis=-1)[:, first:]
    order = mx.argsort(-mx.take_along_axis(logits, best, axis=-1), axis=-1)
    return mx.take_along_axis(best, order, axis=-1)
