"""From logits to the next token: temperature, nucleus, and noise that is keyed by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from magistral_mlx.backend import mx
from magistral_mlx.errors import InvalidOption

Sampler = Callable[[mx.array, int], mx.array]  # ((1, vocab_size) logits, position) -> (1,) token

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Defaults are the model card's; temperature 0 is greedy."""

    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        if not 0 <= self.temperature < float("inf"):
            raise InvalidOption(
                f"temperature is {self.temperature}; it must be 0 (greedy) or more."
            )
        if not 0 < self.top_p <= 1:
            raise InvalidOption(f"top_p is {self.top_p}; it must be above 0 and at most 1.")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InvalidOption(f"seed is {self.seed}; it must be from 0 to {LARGEST_SEED}.")


def make_sampler(sampling: Sampling) -> Sampler:
    """The sampler of one generation.

    The noise of a token depends on the seed and its position alone, and is applied by the
    Gumbel-max rule: the next token is a function of the logits, so the same seed gives the same
    tokens however they were computed (chunked, cached, drafted).
    """
    if sampling.temperature == 0:
        return lambda logits, position: mx.argmax(logits, axis=-1)

    def sample(logits: mx.array, position: int) -> mx.array:
        logits = logits.astype(mx.float32) / sampling.temperature
        if sampling.top_p < 1:
            logits = keep_nucleus(logits, sampling.top_p)
        key = mx.random.key(sampling.seed << 32 | position)
        return mx.argmax(logits + mx.random.gumbel(logits.shape, key=key), axis=-1)

    return sample


def keep_nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Keep the fewest tokens whose probabilities reach `top_p`; the rest become -inf.

    Args:
        logits: (1, vocab_size) float32, scaled by temperature.

    Source: nucleus sampling, arXiv 1904.09751.
    """
    order = mx.argsort(-logits, axis=-1)
    ranked = mx.take_along_axis(mx.softmax(logits, axis=-1), order, axis=-1)
    before = mx.cumsum(ranked, axis=-1) - ranked  # probability of all that rank higher
    kept = mx.put_along_axis(
        mx.zeros_like(logits), order, (before < top_p).astype(logits.dtype), axis=-1
    )
    return mx.where(kept > 0, logits, -mx.inf)
