"""Sampling options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from magistral_mlx.engine.dry import Dry


@dataclass(frozen=True)
class Sampling:
    """Sampling options, validated by the API. By default everything is off.

    temperature: 0 is greedy. top_p, top_k, min_p: filters, applied in the order of transformers
        and vLLM, see `filters`.
    seed: seed of the noise, which depends on seed and token position alone.
    repetition_penalty: divides positive logits of recent tokens and multiplies negative ones
        (CTRL, arXiv 1909.05858); the last `repetition_window` tokens of prompt and output are
        recent, None for all.
    presence_penalty, frequency_penalty: subtracted from the logit of every token in the output,
        once or per occurrence. The prompt does not count (OpenAI's semantics).
    logit_bias: values added to the logits of these ids.
    dry: DRY penalty for continuing repeated sequences; None is off.
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
        """The same options without anything that depends on earlier tokens."""
        return replace(
            self, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, dry=None
        )

    @property
    def penalises(self) -> bool:
        """Whether any penalty other than DRY is on."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )
