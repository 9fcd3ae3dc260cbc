"""Times computed from speeds: those that `doctor --check` measured on this machine, else those that
are published for its chip. To be labelled as computed."""

from __future__ import annotations

import math

from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.names import expected_tensors
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.memory.machine import Machine
from magistral_mlx.memory.peak import Weights, packed_token_bytes
from magistral_mlx.memory.plan import Plan


def prefill_seconds(plan: Plan) -> float | None:
    """Seconds of prefill for a full context; None if the machine's compute is not known.

    Each chunk takes the longer of its arithmetic and its memory reads.
    """
    flops, bandwidth = flops_of(plan.machine), bandwidth_of(plan.machine)
    if flops is None or bandwidth is None:
        return None
    weights, text = layer_weights(plan.model.config), plan.model.config.text
    seconds = 0.0
    for start in range(0, plan.context, plan.chunk):
        end = min(start + plan.chunk, plan.context)
        computing = chunk_flops(weights, text, start, end) / flops
        reading = chunk_bytes(plan, end) / bandwidth
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

    None if the bandwidth is not known.
    """
    bandwidth = bandwidth_of(plan.machine)
    if bandwidth is None:
        return None
    text, float_bytes = plan.model.config.text, plan.profile.float_bytes
    read = bytes_per_token(plan.model.weights, text, context, plan.scheme, float_bytes)
    return bandwidth / read


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


def bandwidth_of(machine: Machine) -> float | None:
    """Bytes per second: measured, else the chip's peak, of which programs reach 80 to 95 %."""
    published = machine.chip.bandwidth * 1e9 if machine.chip else None
    return machine.measured.bandwidth or published


def flops_of(machine: Machine) -> float | None:
    """Floating-point operations per second of a prompt's matrix products."""
    published = machine.chip.fp16_tflops if machine.chip else None
    return machine.measured.flops or (published * 1e12 if published else None)


def why_not_computed(machine: Machine) -> str | None:
    """Explain missing figures and what to do about it; None if none is missing."""
    chip = machine.chip
    if bandwidth_of(machine) is not None and flops_of(machine) is not None:
        return None
    if chip is None:
        advice = "name the chip, as in --machine 'M4 Pro 48GB'"
        if machine.available is not None:  # this machine
            advice = f"measure them with `magistral-mlx doctor --check`, or {advice}"
        return (
            "Times are computed from a chip's published figures, and none are known for this "
            f"machine: {advice}."
        )
    if chip.fp16_tflops is None:
        return (
            f"How long a prompt takes is not computed: no compute of the {chip.name} is published. "
            "On that Mac, `magistral-mlx doctor --check` measures it."
        )
    return None
