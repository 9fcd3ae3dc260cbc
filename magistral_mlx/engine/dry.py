"""DRY: what would go on repeating an earlier sequence becomes less likely, the more so the longer
the repeated sequence is already.

Source: "DRY: a modern repetition penalty", text-generation-webui pull request 5677.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.errors import InvalidOption

DEFAULT_BREAKERS = ("\n", ":", '"', "*")
_LONGEST = 50  # a longer match weighs no more: the penalty is past all logits long before


@dataclass(frozen=True)
class Dry:
    """A token that extends a repeated sequence of n >= allowed_length tokens loses
    multiplier * base ** (n - allowed_length) of its logit.

    range: tokens of prompt and output to look back at; None is all.
    breakers: ids that no repeated sequence reaches across; see `breaker_tokens`.
    """

    multiplier: float = 0.8
    base: float = 1.75
    allowed_length: int = 2
    range: int | None = None
    breakers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        limits = (
            ("multiplier", 0 <= self.multiplier < math.inf, "0 (off) or more"),
            ("base", 1 <= self.base < math.inf, "1 or more"),
            ("allowed_length", self.allowed_length >= 1, "1 or more"),
            ("range", self.range is None or self.range >= 1, "1 or more, or None for all"),
        )
        for name, fits, expected in limits:
            if not fits:
                raise InvalidOption(f"dry_{name} is {getattr(self, name)}; it must be {expected}.")


def breaker_tokens(texts: Sequence[str], vocabulary: Vocabulary) -> frozenset[int]:
    """The ids of all tokens that hold one of `texts`, and of control tokens.

    Raises:
        InvalidOption: an empty text, which every token would hold.
    """
    if not all(texts):
        raise InvalidOption("a DRY sequence breaker is empty; it must have a character or more.")
    breakers = [text.encode() for text in texts]
    return frozenset(
        token
        for token, piece in enumerate(vocabulary.tokens)
        if not piece or any(breaker in piece for breaker in breakers)
    )


def dry_penalties(tokens: NDArray[np.int32], dry: Dry) -> dict[int, float]:
    """What is to be subtracted from the logits of the next token: id -> penalty.

    Args:
        tokens: (n,) prompt and output so far.
    """
    if dry.range is not None:
        tokens = tokens[-dry.range :]
    if dry.multiplier == 0 or len(tokens) < 2 or int(tokens[-1]) in dry.breakers:
        return {}
    places = np.flatnonzero(tokens[:-1] == tokens[-1])  # ends of earlier matches of the last token
    matched: dict[int, int] = {}  # next token -> longest sequence that it would extend
    for length in range(1, _LONGEST + 1):
        if length >= dry.allowed_length:
            matched |= dict.fromkeys(tokens[places + 1].tolist(), length)
        if length == len(tokens) or int(tokens[-1 - length]) in dry.breakers:
            break
        places = places[places >= length]
        places = places[tokens[places - length] == tokens[-1 - length]]
        if not len(places):
            break
    return {
        token: dry.multiplier * dry.base ** (length - dry.allowed_length)
        for token, length in matched.items()
        if token not in dry.breakers
    }
