"""Next-token distributions compared: log-probabilities and their divergence, in float32."""

from __future__ import annotations

from magistral_mlx.backend import mx


def log_softmax(logits: mx.array) -> mx.array:
    """Return the natural log-probabilities of logits (…, vocab_size), in float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def divergence(reference: mx.array, other: mx.array) -> mx.array:
    """Compute the Kullback-Leibler divergence KL(reference || other), in nats.

    Args:
        reference, other: (…, vocab_size) log-probabilities.

    Returns:
        (…,) divergences; of equal distributions 0, of nearly equal ones within 1e-6 of it.
    """
    return (mx.exp(reference) * (reference - other)).sum(axis=-1)
