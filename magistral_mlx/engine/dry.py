"""DRY ("don't repeat yourself"): a penalty for tokens that would continue a repeated sequence,
growing with the length of the repetition.

Source: "DRY: a modern repetition penalty", text-generation-webui pull request 5677.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from magistral_mlx.errors import InvalidOption
from magistral_mlx.option_spec import Integer, Number, option, validate_options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from magistral_mlx.engine.vocabulary import Vocabulary

DEFAULT_BREAKERS = ("\n", ":", '"', "*")
_LONGEST = 50  # length from which a match weighs no more: the penalty exceeds all logits by then


@dataclass(frozen=True)
class Dry:
    """Options of DRY: multiplier * base ** (n - allowed_length) is subtracted from the logit of a
    token that would extend a repeated sequence of n >= allowed_length tokens.

    breakers: ids that end a repeated sequence, see `breaker_tokens`; None for those of
        `DEFAULT_BREAKERS` in the model's vocabulary.
    """

    multiplier: float = option(0.8, Number(0, meanings={0: "off"}), "Weight of DRY's penalty.")
    base: float = option(1.75, Number(1), "Growth of DRY's penalty for each repeated token.")
    allowed_length: int = option(2, Integer(1), "Repeated tokens that DRY allows.")
    range: int | None = option(
        None, Integer(1), "Recent tokens that DRY looks back at.", unset="all"
    )
    breakers: frozenset[int] | None = None

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        validate_options(self, prefix="dry_")


def breaker_tokens(texts: Sequence[str], vocabulary: Vocabulary) -> frozenset[int]:
    """Return the ids of all tokens that contain one of `texts`, and of control tokens.

    Raises:
        InvalidOption: a text is empty.
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
    """Return the penalties to subtract from the logits of the next token, by id.

    Args:
        tokens: (n,) prompt and output so far.
    """
    import numpy as np  # not above: the command line reads the options without it

    breakers = dry.breakers or frozenset()
    if dry.range is not None:
        tokens = tokens[-dry.range :]
    if dry.multiplier == 0 or len(tokens) < 2 or int(tokens[-1]) in breakers:
        return {}
    places = np.flatnonzero(tokens[:-1] == tokens[-1])  # ends of earlier matches of the last token
    matched: dict[int, int] = {}  # next token -> longest sequence that it would extend
    for length in range(1, _LONGEST + 1):
        if length >= dry.allowed_length:
            matched |= dict.fromkeys(tokens[places + 1].tolist(), length)
        if length == len(tokens) or int(tokens[-1 - length]) in breakers:
            break
        places = places[places >= length]
        places = places[tokens[places - length] == tokens[-1 - length]]
        if not len(places):
            break
    return {
        token: dry.multiplier * dry.base ** (length - dry.allowed_length)
        for token, length in matched.items()
        if token not in breakers
    }
