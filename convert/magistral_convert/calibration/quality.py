"""Quality of a conversion: its next-token distributions against those of the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from magistral_convert.calibration.facts import Quality
from magistral_convert.calibration.memory import LOGITS_ROWS
from magistral_mlx.backend import mx
from magistral_mlx.divergence import divergence, log_softmax

Logits = Callable[[mx.array], mx.array]  # (T, D) -> (T, vocabulary)


def compare(original: mx.array, found: mx.array, of_original: Logits, of_found: Logits) -> Quality:
    """Compare the distributions of two last hidden states, (T, D) each."""
    total, same = 0.0, 0
    for start in range(0, len(original), LOGITS_ROWS):
        right = log_softmax(of_original(original[start : start + LOGITS_ROWS]))
        other = log_softmax(of_found(found[start : start + LOGITS_ROWS]))
        each = divergence(right, other).sum()
        agree = (right.argmax(axis=-1) == other.argmax(axis=-1)).sum()
        mx.eval(each, agree)
        total += cast(float, each.item())
        same += cast(int, agree.item())
    return Quality(total / len(original), same / len(original), len(original))
