"""The hyperparameters of a model as frozen dataclasses; `config_files` reads them from a folder."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Yarn:
    """YaRN: a rope extended beyond the original training context (arXiv 2309.00071).

    Frequencies with fewer than `beta_slow` turns in `original_context` tokens are divided by
    `factor`, those with more than `beta_fast` turns are unchanged, and between them is a ramp,
    whose ends are whole dimensions if `truncate`. `attention_factor` multiplies queries and keys;
    None computes it from the two mscales.
    """

    factor: float
    original_context: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True

    @property
    def query_key_factor(self) -> float:
        """Factor by which queries and keys are multiplied."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
        return self._growth(1.0)

    def _growth(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class QueryScaling:
    """Scaling of queries at position p by 1 + beta * ln(1 + floor(p / original_context))."""

    beta: float
    original_context: int


@dataclass(frozen=True)
class TextConfig:
    """The decoder: a Mistral transformer with grouped-query attention."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool = False
    yarn: Yarn | None = None
    query_scaling: QueryScaling | None = None


@dataclass(frozen=True)
class VisionConfig:
    """The Pixtral vision tower. `image_size` is the longest side in pixels."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    image_size: int
    patch_size: int
    num_channels: int
    rope_theta: float
    rms_norm_eps: float = 1e-5  # the reference fixes it, whatever the text model has


@dataclass(frozen=True)
class ModelConfig:
    """The whole model. `vision` is None for a text-only checkpoint."""

    text: TextConfig
    vision: VisionConfig | None
    image_token_id: int = 10
    spatial_merge_size: int = 2
    projector_bias: bool = False

    def without_vision(self) -> ModelConfig:
        """The same model as a text-only one."""
        return ModelConfig(text=self.text, vision=None, image_token_id=self.image_token_id)
