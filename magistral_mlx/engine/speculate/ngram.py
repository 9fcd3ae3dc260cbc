"""Draft tokens from the text itself: the continuation of an earlier occurrence of its end.

The longest suffix that occurs earlier is found as in LZ77, by chains of the positions where short
n-grams ended. Source: prompt lookup decoding (A. Saxena, 2023); the index is our own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

LONGEST = 32  # tokens of a match, at most; longer ones predict no better
_ORDERS = (3, 1)  # lengths of the indexed n-grams, the longest first
_CANDIDATES = 16  # earlier positions examined for one match
_COPY = 10  # tokens from which a match that ends counts as an edited copy
_NEARBY = 8  # tokens of the original in which the copy is expected to resume
_SHORT = 4  # tokens up to which a match is worse than resuming a copy
_RESUMED = 6  # length of a match that a resumed copy counts as

# (length of a match, initial acceptance probability of the next token from that length on).
_PRIORS = ((1, 0.2), (2, 0.35), (3, 0.45), (4, 0.55), (6, 0.65), (9, 0.75), (16, 0.85), (32, 0.92))
_LENGTHS = tuple(length for length, _ in _PRIORS)
_WEIGHT = 1 / 32  # weight of the newest token in the running mean


class Suffixes:
    """Index of the tokens of a sequence, which finds earlier occurrences of its end.

    The cost per token is constant. place: position after the best earlier occurrence, so the token
    there is expected next. length: tokens of that match, or of an equally good one; 0 for none.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.place = self.length = 0
        self._original = self._changed_at = (
            0  # where a copy was left: its place, and the tokens then
        )
        self._last: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in _ORDERS)
        # For each position and order the previous position of the same n-gram; 0 ends a chain.
        self._earlier: tuple[list[int], ...] = tuple([0] for _ in _ORDERS)

    @property
    def expected(self) -> int | None:
        """The token that is expected next."""
        return self.tokens[self.place] if self.length else None

    def extend(self, tokens: Iterable[int]) -> None:
        """Append several tokens, then search for a match once."""
        for token in tokens:
            self._add(token)
        self.place, self.length = self.find()

    def add(self, token: int) -> None:
        """Append one token and update the match."""
        if self.length > 0 and self.tokens[self.place] == token:
            # No other match was longer, so none can be longer now.
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
        """Position after `token` in the original of a copy that ended a few tokens ago, or 0.

        An edit of a copied text replaces a few tokens and then continues with the original.
        """
        if not self._original or len(self.tokens) - self._changed_at > 2 * _NEARBY:
            return 0
        for place in range(self._original, min(self._original + _NEARBY, len(self.tokens) - 1)):
            if self.tokens[place] == token:
                return place + 1
        return 0

    def guess(self, most: int) -> list[int]:
        """Return up to `most` tokens that are expected next."""
        if not self.length:
            return []
        guesses = self.tokens[self.place : self.place + most]
        while len(guesses) < most:  # the match overlaps the end, so the text repeats itself
            guesses += guesses[: most - len(guesses)]
        return guesses

    def find(self) -> tuple[int, int]:
        """Find the position after the best earlier occurrence of the end, and its length.

        The longest match wins, and the most recent of equally long ones. (0, 0) if there is none.
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
        """Number of equal tokens before `place` and `end`; the first `known` are equal already."""
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
    """Acceptance rates of n-gram draft tokens by match length, as running means over one sequence.

    They are learned in plain decoding too, by comparing the expected token with the actual one, so
    drafting need not be tried to find out whether it pays.
    """

    def __init__(self) -> None:
        self._chances = [chance for _, chance in _PRIORS]

    def chance(self, length: int) -> float:
        """Probability that the token after a match of `length` tokens is the expected one."""
        return self._chances[bisect_right(_LENGTHS, length) - 1]

    def chances(self, length: int, most: int) -> list[float]:
        """Probabilities of the next tokens, each if all before it were as expected."""
        return [self.chance(length + n) for n in range(most)]

    def learn(self, length: int, right: bool) -> None:
        """Record whether the token after a match of `length` tokens was the expected one."""
        bucket = bisect_right(_LENGTHS, length) - 1
        self._chances[bucket] += _WEIGHT * (right - self._chances[bucket])
