"""Times computed from a chip's published figures, to be labelled as computed, not measured."""

from __future__ import annotations

import math

from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.names import expected_tensors
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.memory.chips import Chip, decode_limit
from magistral_mlx.memory.peak import Weights, packed_token_bytes
from magistral_mlx.memory.plan import Plan


def prefill_seconds(plan: Plan) -> float | None:
    """Seconds of prefill for a full context; None if the chip's compute is not published.

    Each chunk takes the longer of its arithmetic and its memory reads.
    """
    chip = plan.machine.chip
    if chip is None or chip.fp16_tflops is None:
        return None
    weights, text = layer_weights(plan.model.config), plan.model.config.text
    seconds = 0.0
    for start in range(0, plan.context, plan.chunk):
        end = min(start + plan.chunk, plan.context)
        computing = chunk_flops(weights, text, start, end) / (chip.fp16_tflops * 1e12)
        reading = chunk_bytes(plan, end) / (chip.bandwidth * 1e9)
        seconds += max(computing, reading)
    return seconds


def layer_weights(config: ModelConfig) -> int:
    """Number of weights in the decoder's layers."""
    return sum(
        math.prod(shape)
        for name, shape in expected_tensors(config).items()
        if name.startswith("language_model.model.layers.")
    )


def chunk_flops(weights: int, text: TextConfig, start: int, end: int) -> float:
    """Floating-point operations of the tokens from `start` to `end`: two per weight and token,
    plus causal attention."""
    scores = 2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim
    return 2.0 * weights * (end - start) + float(scores) * (end**2 - start**2)


def chunk_bytes(plan: Plan, end: int) -> int:
    """Bytes that the chunk up to token `end` reads: as many as its last token would alone."""
    text, float_bytes = plan.model.config.text, plan.profile.float_bytes
    return bytes_per_token(plan.model.weights, text, end, plan.scheme, float_bytes)


def decode_tokens_per_second(plan: Plan, context: int) -> float | None:
    """Upper limit of decoding speed by memory bandwidth with `context` tokens in the caches.

    None if the chip is unknown.
    """
    chip = plan.machine.chip
    if chip is None:
        return None
    text, float_bytes = plan.model.config.text, plan.profile.float_bytes
    read = bytes_per_token(plan.model.weights, text, context, plan.scheme, float_bytes)
    return decode_limit(read, chip)


def bytes_per_token(
    weights: Weights, text: TextConfig, context: int, scheme: KVScheme, float_bytes: int
) -> int:
    """Bytes that decoding one token reads: all weights except the embedding table, of which one
    row is read and not counted, and the caches."""
    return weights.read + cached_bytes(text, context, scheme, float_bytes)


def cached_bytes(text: TextConfig, tokens: int, scheme: KVScheme, float_bytes: int) -> int:
    """Bytes of `tokens` tokens in the caches of all layers, without spare capacity."""
    plain = 2 * text.num_key_value_heads * text.head_dim * float_bytes
    packed = scheme.packed(tokens) if scheme.quantized else 0
    layer = (tokens - packed) * plain
    if packed:
        layer += packed * packed_token_bytes(text, scheme, float_bytes)
    return text.num_hidden_layers * layer


def why_not_computed(chip: Chip | None) -> str | None:
    """Explain missing figures and what to do about it; None if none is missing."""
    if chip is None:
        return (
            "Times are computed from a chip's published figures, and none are known for this "
            "machine: name the chip, as in --machine 'M4 Pro 48GB'."
        )
    if chip.fp16_tflops is None:
        return (
            f"How long a prompt takes is not computed: no compute of the {chip.name} is published."
        )
    return None
