"""How often guesses turn out right, by the length of the match that they come from.

Every token tells: where plain decoding goes on, the guess that was not checked is compared with
what came. So what pays is known without being tried.
"""

from __future__ import annotations

from bisect import bisect_right

# Matches from so many tokens on, and how often the next token is right: where it begins from.
_PRIORS = ((1, 0.2), (2, 0.35), (3, 0.45), (4, 0.55), (6, 0.65), (9, 0.75), (16, 0.85), (32, 0.92))
_LENGTHS = tuple(length for length, _ in _PRIORS)
_WEIGHT = 1 / 32  # of the newest token in the running mean


class Acceptance:
    """Running means over one text."""

    def __init__(self) -> None:
        self._chances = [chance for _, chance in _PRIORS]

    def chance(self, length: int) -> float:
        """That the token after a match of `length` tokens is the expected one."""
        return self._chances[bisect_right(_LENGTHS, length) - 1]

    def chances(self, length: int, most: int) -> list[float]:
        """Of the next token, of the one after it if that is right, and so on."""
        return [self.chance(length + n) for n in range(most)]

    def learn(self, length: int, right: bool) -> None:
        """What came of the guess after a match of `length` tokens."""
        bucket = bisect_right(_LENGTHS, length) - 1
        self._chances[bucket] += _WEIGHT * (right - self._chances[bucket])
