"""Detection of loops: a thinking trace that ends in exact repetitions of one span of tokens.

The rule: a span of p tokens repeats at least `repeats` times back to back, and over at least
`tokens` tokens, if it is prose (half of its tokens have letters, and two of those differ). A span
shorter than `short` tokens may be a table row or a line of code, which legitimately repeat: it
must go on for `short_tokens` tokens. Spans of digits and signs (rows of zeros, rules of a table, a
carry through all digits of a sum) are legitimate at greater length: they must go on for
`plain_tokens` tokens. Text that changes between repetitions, if only by a counter, is not a loop,
so code, tables, lists of numbers and digit-by-digit arithmetic are not affected.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.errors import InvalidOption

_CHECK_EVERY = 32  # tokens
_PROBE = 8  # newest tokens that must occur earlier for a period to be checked
_PERIODS = 256  # periods checked at a time, shortest first


@dataclass(frozen=True)
class LoopRule:
    """Thresholds of the rule above.

    window: number of newest tokens searched, so the longest span found has window / repeats.
    """

    repeats: int = 4
    tokens: int = 256
    plain_tokens: int = 2048
    window: int = 8192
    short: int = 16
    short_tokens: int = 1024

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        if not (self.repeats >= 2 and _PROBE < self.tokens <= self.plain_tokens <= self.window):
            raise InvalidOption(
                f"{self} is invalid: repeats must be 2 or more, and "
                f"{_PROBE} < tokens <= plain_tokens <= window."
            )


class LoopDetector:
    """Loop detection for the trace of one generation, token by token."""

    def __init__(self, rule: LoopRule, is_word: Callable[[int], bool]) -> None:
        """Start with an empty trace. `is_word`: whether a token contains a letter."""
        self._rule = rule
        self._is_word = is_word
        self._trace = np.empty(2 * rule.window, np.int32)
        self._length = 0
        self._since_check = 0

    def copy(self) -> LoopDetector:
        """Return an independent copy."""
        other = copy.copy(self)
        other._trace = self._trace.copy()
        return other

    def add(self, token: int) -> bool:
        """Add the next token of the trace; return whether the trace now ends in a loop."""
        if self._length == len(self._trace):
            kept = self._rule.window
            self._trace[:kept] = self._trace[-kept:]
            self._length = kept
        self._trace[self._length] = token
        self._length += 1
        self._since_check += 1
        if self._since_check < _CHECK_EVERY:
            return False
        self._since_check = 0
        recent = self._trace[max(0, self._length - self._rule.window) : self._length]
        return any(self._is_loop(recent[-p:], stretch) for p, stretch in repetitions(recent))

    def _is_loop(self, span: NDArray[np.int32], stretch: int) -> bool:
        rule = self._rule
        if stretch < max(rule.repeats * len(span), rule.tokens):
            return False
        words = [token for token in span.tolist() if self._is_word(token)]
        is_prose = 2 * len(words) >= len(span) and len(set(words)) >= 2
        if stretch >= (rule.short_tokens if is_prose else rule.plain_tokens):
            return True
        return is_prose and not _repeats(span, rule.short)


def _repeats(span: NDArray[np.int32], shorter: int) -> bool:
    """Whether `span` consists of repetitions of a span of fewer than `shorter` tokens."""
    return any(
        len(span) % p == 0 and (span.reshape(-1, p) == span[:p]).all()
        for p in range(1, min(shorter, len(span) + 1))
    )


def repetitions(tokens: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """Yield (period, number of tokens) of the repetitions that `tokens`, (n,), ends with,
    shortest period first.

    A stretch of tokens has the period p if each of its tokens equals the one p before it.
    """
    if len(tokens) <= _PROBE:
        return
    earlier = np.lib.stride_tricks.sliding_window_view(tokens[:-1], _PROBE)
    starts = np.flatnonzero((earlier == tokens[-_PROBE:]).all(axis=1))
    for p in (len(tokens) - _PROBE - starts[::-1][:_PERIODS]).tolist():
        differs = np.flatnonzero(tokens[p:] != tokens[:-p])
        same = len(tokens) - p - (int(differs[-1]) + 1 if len(differs) else 0)
        yield p, same + p
