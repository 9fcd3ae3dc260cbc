"""Times computed from a chip's published figures. Nobody measured them; say so beside each."""

from __future__ import annotations

import math

from magistral_mlx.checkpoint.names import expected_tensors
from magistral_mlx.config import ModelConfig
from magistral_mlx.memory.chips import Chip, decode_limit
from magistral_mlx.memory.plan import Plan


def prefill_flops(config: ModelConfig, tokens: int) -> float:
    """Floating-point operations of a prefill: two a weight and token, and causal attention."""
    text = config.text
    weights = sum(
        math.prod(shape)
        for name, shape in expected_tensors(config).items()
        if name.startswith("language_model.model.layers.")
    )
    scores = 2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim
    return 2.0 * weights * tokens + float(scores) * tokens * tokens


def prefill_seconds(config: ModelConfig, tokens: int, chip: Chip | None) -> float | None:
    """Seconds of a prefill at the chip's published compute; None where no chip is known."""
    if chip is None or chip.fp16_tflops is None:
        return None
    return prefill_flops(config, tokens) / (chip.fp16_tflops * 1e12)


def decode_tokens_per_second(plan: Plan, chip: Chip | None) -> float | None:
    """What memory bandwidth allows at most with a short context; None likewise.

    A token reads every weight of the decoder once.
    """
    return None if chip is None else decode_limit(plan.peak.weights, chip)
