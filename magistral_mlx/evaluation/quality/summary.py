"""Summaries of a comparison: divergence, agreement and perplexity, in all and by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magistral_mlx.evaluation.quality.work_folder import TokenFigures

# Positions in a sequence: short prompts, long ones, and long thinking; then what the model card
# warns of.
BANDS = ((0, 2048), (2048, 16384), (16384, 40960), (40960, None))


@dataclass(frozen=True)
class QualitySummary:
    """Figures of some tokens; divergences are in nats.

    start, end: positions in their sequences that these tokens have; None for no end.
    divergence: mean KL(first || other). error: standard error of that mean. high: 99th percentile.
    agreement: share of tokens with the same likeliest token. first, other: perplexities.
    """

    start: int
    end: int | None
    tokens: int
    divergence: float
    error: float
    high: float
    agreement: float
    first: float
    other: float

    @classmethod
    def of(cls, figures: TokenFigures, start: int = 0, end: int | None = None) -> QualitySummary:
        """Summarise one token's figures or more."""
        divergence = figures.divergence.astype(np.float64)
        spread = float(divergence.std(ddof=1)) if len(divergence) > 1 else 0.0
        return cls(
            start,
            end,
            len(divergence),
            divergence=float(divergence.mean()),
            error=spread / len(divergence) ** 0.5,
            high=float(np.percentile(divergence, 99)),
            agreement=float(figures.agrees.mean(dtype=np.float64)),
            first=perplexity(figures.first),
            other=perplexity(figures.other),
        )


def perplexity(logprobs: np.typing.NDArray[np.float32]) -> float:
    """Compute the perplexity of tokens by their log-probabilities."""
    return float(np.exp(-logprobs.mean(dtype=np.float64)))


def summarise(figures: Sequence[TokenFigures]) -> tuple[QualitySummary, list[QualitySummary]]:
    """Summarise the figures of sequences, in all and by the position of the predicted tokens.

    A band without tokens is left out.
    """
    bands = []
    for start, end in BANDS:
        # The first token of a sequence is not predicted.
        parts = [_between(one, max(start - 1, 0), end and end - 1) for one in figures]
        found = TokenFigures.joined(parts)
        if len(found.divergence):
            bands.append(QualitySummary.of(found, start, end))
    return QualitySummary.of(TokenFigures.joined(figures)), bands


def _between(figures: TokenFigures, start: int, end: int | None) -> TokenFigures:
    return TokenFigures(**{name: values[start:end] for name, values in vars(figures).items()})
