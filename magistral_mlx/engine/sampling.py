"""How tokens are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from magistral_mlx.engine.dry import Dry


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn, of values in range: an API's options check them. By default all is off.

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

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    dry: Dry | None = None

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
