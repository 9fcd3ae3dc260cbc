"""The physical limit of decoding a checkpoint: what one token reads of it and of the caches."""

from __future__ import annotations

from magistral_mlx.bench.process import OURS
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.memory import estimate
from magistral_mlx.memory.peak import loaded_weights


def bytes_per_token(
    checkpoint: Checkpoint, context: int, scheme: KVScheme, float_bytes: int
) -> int:
    """Bytes that decoding one token reads: the decoder and what the caches hold.

    Args:
        context: tokens in the caches.
        float_bytes: size of a value of the compute dtype, in which scales and norms are held.
    """
    weights = loaded_weights(checkpoint, float_bytes)
    return estimate.bytes_per_token(weights, checkpoint.config.text, context, scheme, float_bytes)


def bytes_read_by(
    label: str,
    checkpoint: Checkpoint,
    context: int,
    count: int,
    scheme: KVScheme,
    float_bytes: int,
) -> int:
    """What a runtime reads for an average one of `count` tokens after a prompt.

    Args:
        label: of the runtime. Peers run a full cache, whichever `scheme` ours has.
    """
    cache = scheme if label == OURS else FULL
    return bytes_per_token(checkpoint, context + count // 2, cache, float_bytes)
