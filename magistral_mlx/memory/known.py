"""Magistral Small 1.2 at 4 bits, described without its files, for plans before a download."""

from __future__ import annotations

import math
from dataclasses import replace

from magistral_mlx.checkpoint.names import LANGUAGE, expected_tensors, head_prefix
from magistral_mlx.config import ModelConfig, TextConfig, VisionConfig
from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.peak import Weights, sum_weights
from magistral_mlx.memory.plan import PlannedModel
from magistral_mlx.quantization import Quantization

NAME = "Magistral Small 1.2 at 4 bits"

# config.json of mistralai/Magistral-Small-2509.
MAGISTRAL_SMALL = ModelConfig(
    text=TextConfig(
        hidden_size=5120,
        intermediate_size=32768,
        num_hidden_layers=40,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=131072,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=1e9,
    ),
    vision=VisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        head_dim=64,
        image_size=1540,
        patch_size=14,
        num_channels=3,
        rope_theta=1e4,
    ),
)


def magistral_small(float_bytes: int = 2) -> PlannedModel:
    """The 4-bit conversion, with the vision tower in bfloat16."""
    return PlannedModel(
        NAME,
        MAGISTRAL_SMALL,
        quantized_weights(MAGISTRAL_SMALL, Quantization(), float_bytes),
    )


def sized_magistral_small(nbytes: int, float_bytes: int = 2) -> PlannedModel:
    """A conversion to a size of all weights, as if all matrices had the same bits.

    Raises:
        InvalidOption: the size is below that of 2 bits.
    """
    sizes = quantized_sizes(MAGISTRAL_SMALL, Quantization(), 2)
    decoder = sum(size for name, size in sizes.items() if name.startswith(LANGUAGE))
    vision = sum(sizes.values()) - decoder
    least = quantized_weights(MAGISTRAL_SMALL, Quantization(2), 2)
    if nbytes < least.decoder + vision:
        tenths = -(-(least.decoder + vision) // 10**8)  # rounded up, so that it is enough
        raise InvalidOption(
            f"--weights is {nbytes}; it must be {tenths / 10} GB or more, the size of all matrices "
            "at 2 bits."
        )
    share = (nbytes - vision) / decoder
    loaded = quantized_weights(MAGISTRAL_SMALL, Quantization(), float_bytes)
    weights = replace(
        loaded, decoder=int(loaded.decoder * share), embedding=int(loaded.embedding * share)
    )
    name = f"Magistral Small 1.2, {nbytes / 1e9:.4g} GB of weights"
    return PlannedModel(name, MAGISTRAL_SMALL, weights)


def quantized_weights(config: ModelConfig, scheme: Quantization, float_bytes: int) -> Weights:
    """Bytes in memory of a model whose decoder matrices are quantized by `scheme`."""
    return sum_weights(quantized_sizes(config, scheme, float_bytes), config)


def quantized_sizes(config: ModelConfig, scheme: Quantization, float_bytes: int) -> dict[str, int]:
    """Bytes in memory of each tensor of such a model, by canonical name."""
    sizes = {}
    for name, shape in expected_tensors(config).items():
        if name.startswith(LANGUAGE) and len(shape) == 2:
            # Scales stay in their stored dtype, but for those of the head.
            scale_bytes = 4 if name.startswith(head_prefix(config)) else 2
            sizes[name] = scheme.nbytes((shape[0], shape[1]), scale_bytes)
        else:
            sizes[name] = math.prod(shape) * float_bytes
    return sizes
