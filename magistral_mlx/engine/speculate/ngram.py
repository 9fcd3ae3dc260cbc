"""Guesses from the text itself: what followed the last time that it read like this.

The longest stretch of tokens that ends the text and stands earlier in it as well is found as LZ77
finds its matches: by chains of the places where short sequences of tokens ended.
Source: prompt lookup decoding (A. Saxena, 2023); the index is our own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

LONGEST = 32  # tokens; a longer match says no more
_ORDERS = (3, 1)  # tokens of the sequences that are indexed, the longest first
_CANDIDATES = 16  # places that are looked at for one match
_COPY = 10  # tokens; where a longer match ends, text was copied and is being changed
_NEARBY = 8  # tokens of the original in which the copy is likely to go on
_SHORT = 4  # tokens; a longer match says more than being nearby does
_RESUMED = 6  # what a match that resumes a copy is as good as, in tokens

# Matches from so many tokens on, and how often the next token is right: where it begins from.
_PRIORS = ((1, 0.2), (2, 0.35), (3, 0.45), (4, 0.55), (6, 0.65), (9, 0.75), (16, 0.85), (32, 0.92))
_LENGTHS = tuple(length for length, _ in _PRIORS)
_WEIGHT = 1 / 32  # of the newest token in the running mean


class Suffixes:
    """The tokens of a prompt and its output, and where their end stands earlier in them.

    A token costs the same however many there are. `place` is the position after the best earlier
    occurrence of the end, so that the token there is what is expected next; `length` is the number
    of tokens that match, or of a match that is as good, 0 if there is no occurrence.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.place = self.length = 0
        self._original = self._changed_at = (
            0  # where a copy was left: its place, and the tokens then
        )
        self._last: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in _ORDERS)
        # The place before, for each place and order; 0 ends a chain.
        self._earlier: tuple[list[int], ...] = tuple([0] for _ in _ORDERS)

    @property
    def expected(self) -> int | None:
        """The token that is expected next."""
        return self.tokens[self.place] if self.length else None

    def extend(self, tokens: Iterable[int]) -> None:
        """Go on by `tokens`, without looking for matches on the way."""
        for token in tokens:
            self._add(token)
        self.place, self.length = self.find()

    def add(self, token: int) -> None:
        """Go on by one token."""
        if self.length > 0 and self.tokens[self.place] == token:
            # No other match was longer, and none of those can be now.
            self.place, self.length = self.place + 1, self.length + 1
            self._add(token)
            return
        if self.length >= _COPY:
            self._original, self._changed_at = self.place, len(self.tokens)
        self._add(token)
        self.place, self.length = self.find()
        if self.length < _SHORT and (resumed := self._resume(token)):
            self.place, self.length = resumed, _RESUMED

    def _resume(self, token: int) -> int:
        """The place after `token` in the original of a copy that was left a few tokens ago; or 0.

        A change to a text puts a few tokens in the place of others and goes on with the original.
        """
        if not self._original or len(self.tokens) - self._changed_at > 2 * _NEARBY:
            return 0
        for place in range(self._original, min(self._original + _NEARBY, len(self.tokens) - 1)):
            if self.tokens[place] == token:
                return place + 1
        return 0

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that are expected next, as many as there are."""
        if not self.length:
            return []
        guesses = self.tokens[self.place : self.place + most]
        while len(guesses) < most:  # the match overlaps the end: the text repeats itself
            guesses += guesses[: most - len(guesses)]
        return guesses

    def find(self) -> tuple[int, int]:
        """The place after the best earlier occurrence of the end, and the tokens that match.

        The longest wins, the most recent of those that are equally long. (0, 0) if there is none.
        """
        end = len(self.tokens)
        for order, earlier in zip(_ORDERS, self._earlier, strict=True):
            place, best, longest = earlier[end], 0, 0
            for _ in range(_CANDIDATES):
                if not place:
                    break
                length = self._matching(place, end, order)
                if length > longest:
                    best, longest = place, length
                    if length == LONGEST:
                        break
                place = earlier[place]
            if best:
                return best, longest
        return 0, 0

    def _matching(self, place: int, end: int, known: int) -> int:
        """Tokens before `place` that are those before `end`, `known` being so already."""
        tokens, length = self.tokens, known
        while (
            length < min(place, LONGEST) and tokens[place - 1 - length] == tokens[end - 1 - length]
        ):
            length += 1
        return length

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        end = len(self.tokens)
        for order, last, earlier in zip(_ORDERS, self._last, self._earlier, strict=True):
            if end < order:
                earlier.append(0)
                continue
            key = tuple(self.tokens[end - order :])
            earlier.append(last.get(key, 0))
            last[key] = end


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
