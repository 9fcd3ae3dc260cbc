"""Quality of a conversion: its next-token distributions against those of the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from magistral_convert.calibration.facts import Quality
from magistral_convert.calibration.memory import LOGITS_ROWS
from magistral_mlx.backend import mx

Logits = Callable[[mx.array], mx.array]  # (T, D) -> (T, vocabulary)


def compare(original: mx.array, found: mx.array, of_original: Logits, of_found: Logits) -> Quality:
    """Compare the distributions of two last hidden states, (T, D) each."""
    divergence, same = 0.0, 0
    for start in range(0, len(original), LOGITS_ROWS):
        right = _log_softmax(of_original(original[start : start + LOGITS_ROWS]))
        other = _log_softmax(of_found(found[start : start + LOGITS_ROWS]))
        each = (mx.exp(right) * (right - other)).sum()
        agree = (right.argmax(axis=-1) == other.argmax(axis=-1)).sum()
        mx.eval(each, agree)
        divergence += cast(float, each.item())
        same += cast(int, agree.item())
    return Quality(divergence / len(original), same / len(original), len(original))


def _log_softmax(logits: mx.array) -> mx.array:
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
