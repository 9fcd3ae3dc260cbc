"""How tokens are drawn: the options, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from magistral_mlx.engine.dry import Dry
from magistral_mlx.errors import InvalidOption

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Defaults are the model card's; everything else is off.

    temperature: 0 is greedy. top_p, top_k, min_p: which tokens may be drawn; they are applied in
        the order of transformers and vLLM, see `filters`.
    seed: of the noise, which depends on it and on a token's position alone.
    repetition_penalty: divides positive logits of recent tokens, multiplies negative ones
        (CTRL, arXiv 1909.05858). Recent are the last `repetition_window` tokens of prompt and
        output; None is all of them.
    presence_penalty, frequency_penalty: subtracted from the logit of every token that has been
        produced, once or as often as it was. The prompt does not count (OpenAI's semantics).
    logit_bias: added to the logits of these ids.
    dry: penalises what would repeat a longer sequence; None is off.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int | None = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    dry: Dry | None = None

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        window = self.repetition_window
        limits = (
            ("temperature", 0 <= self.temperature < math.inf, "0 (greedy) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= self.seed <= LARGEST_SEED, f"from 0 to {LARGEST_SEED}"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0; 1 is off"),
            ("repetition_window", window is None or window >= 1, "1 or more, or None for all"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "from -2 to 2"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "from -2 to 2"),
        )
        for name, fits, expected in limits:
            if not fits:
                raise InvalidOption(f"{name} is {getattr(self, name)}; it must be {expected}.")
        for token, bias in self.logit_bias.items():
            if token < 0 or not -100 <= bias <= 100:
                raise InvalidOption(
                    f"logit_bias is {bias} for token {token}; it must be from -100 to 100, and "
                    "the token an id."
                )

    def check_ids(self, vocab_size: int) -> None:
        """Raises InvalidOption for an id in logit_bias that a model of that size lacks."""
        largest = max(self.logit_bias, default=0)
        if largest >= vocab_size:
            raise InvalidOption(
                f"logit_bias names token {largest}; this model's ids end at {vocab_size - 1}."
            )

    def without_penalties(self) -> Sampling:
        """The same with nothing in it that depends on earlier tokens."""
        return replace(
            self, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, dry=None
        )

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on those before it, DRY aside."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )
