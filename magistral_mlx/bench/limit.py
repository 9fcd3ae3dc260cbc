"""The physical limit of decoding: every weight and every key and value is read once a token."""

from __future__ import annotations

from dataclasses import replace

from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.config import TextConfig
from magistral_mlx.memory.peak import loaded_weights, packed_token_bytes

_EMBEDDING = "language_model.model.embed_tokens."


def bytes_per_token(
    checkpoint: Checkpoint, context: int, scheme: KVScheme, float_bytes: int
) -> int:
    """Bytes that decoding one token reads: the decoder and what the caches hold.

    Args:
        context: tokens in the caches.
        float_bytes: size of a value of the compute dtype, in which scales and norms are held.
    """
    tensors = checkpoint.tensors
    if not checkpoint.config.text.tie_word_embeddings:
        # One row of the embedding is read.
        tensors = {k: v for k, v in tensors.items() if not k.startswith(_EMBEDDING)}
    weights = loaded_weights(replace(checkpoint, tensors=tensors), float_bytes).decoder
    return weights + cached_bytes(checkpoint.config.text, context, scheme, float_bytes)


def cached_bytes(text: TextConfig, tokens: int, scheme: KVScheme, float_bytes: int) -> int:
    """Bytes of so many tokens in the caches of all layers, without spare room."""
    plain = 2 * text.num_key_value_heads * text.head_dim * float_bytes
    packed = scheme.packed(tokens) if scheme.quantized else 0
    layer = (tokens - packed) * plain
    if packed:
        layer += packed * packed_token_bytes(text, scheme, float_bytes)
    return text.num_hidden_layers * layer
