"""Quality of a conversion: its next-token distributions against those of the original."""

from __future__ import annotations

from typing import cast

from magistral_convert.calibration.facts import Quality
from magistral_convert.calibration.memory import LOGITS_ROWS
from magistral_mlx.backend import mx
from magistral_mlx.divergence import divergence, log_softmax

_HEAD_ROWS = 8192  # rows of a head that are multiplied together


def compare(
    original: mx.array, found: mx.array, original_head: mx.array, found_head: mx.array
) -> Quality:
    """Compare the distributions of two last hidden states, (T, D) each.

    Args:
        original_head, found_head: (vocabulary, D).
    """
    total, same = 0.0, 0
    for start in range(0, len(original), LOGITS_ROWS):
        right = log_softmax(_logits(original[start : start + LOGITS_ROWS], original_head))
        mx.eval(right)
        other = log_softmax(_logits(found[start : start + LOGITS_ROWS], found_head))
        each = divergence(right, other).sum()
        agree = (right.argmax(axis=-1) == other.argmax(axis=-1)).sum()
        mx.eval(each, agree)
        total += cast(float, each.item())
        same += cast(int, agree.item())
    return Quality(total / len(original), same / len(original), len(original))


def _logits(h: mx.array, head: mx.array) -> mx.array:
    """(T, D) -> (T, vocabulary) in float32, as the runtime's quantized head gives them: logits in
    bfloat16 lie an eighth apart."""
    h = h.astype(mx.float32)
    parts = []
    for start in range(0, len(head), _HEAD_ROWS):
        parts.append(h @ head[start : start + _HEAD_ROWS].astype(mx.float32).T)
        mx.eval(parts)
    return mx.concatenate(parts, axis=-1)
