"""Token sequences that models are compared on, from a user's files or from the text that ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_convert.calibration.text import DEFAULT, encode_file, encode_held_out
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import InvalidOption, TokenizerError
from magistral_mlx.evaluation.quality.variants import ComparedModel

_LEAST = 64  # tokens of a user's file
_LEAST_CONTEXT = 16

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class ComparedText:
    """Sequences of token ids, (L,) each, in the order of their files.

    left_out: tokens of the files beyond the limit.
    """

    sequences: tuple[Tokens, ...]
    left_out: int = 0

    @property
    def longest(self) -> int:
        return max(map(len, self.sequences))

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))


def read_text(
    files: Sequence[str], models: Sequence[ComparedModel], context: int, tokens: int
) -> ComparedText:
    """Encode and cut the text for models of one tokenizer.

    Args:
        files: of UTF-8 text, or DEFAULT for the held-out text that ships; none means that.
        context: tokens of the longest sequence; each model's own longest context limits it too.
        tokens: at most, in equal shares of the files.

    Raises:
        InvalidOption: a file that cannot be used, or a number out of range.
        TokenizerError: two models whose tokens are not the same.
    """
    own = [model.checkpoint.config.text.max_position_embeddings for model in models]
    context = min(context, *own)
    if context < _LEAST_CONTEXT or tokens < _LEAST_CONTEXT:
        raise InvalidOption(
            f"a sequence of {min(context, tokens)} tokens is too short to compare models on; give "
            f"{_LEAST_CONTEXT} or more."
        )
    tokenizer = _common_tokenizer(models)
    streams = [
        encode_held_out(tokenizer)
        if file == DEFAULT
        else encode_file(file, tokenizer, "--text", _LEAST)
        for file in files or (DEFAULT,)
    ]
    share = max(_LEAST_CONTEXT, tokens // len(streams))
    sequences = []
    for ids in streams:
        used = np.array(ids[:share], np.int32)
        cuts = range(context, len(used), context)
        sequences += [part for part in np.split(used, cuts) if len(part) > 1]
    found = ComparedText(tuple(sequences), sum(max(0, len(ids) - share) for ids in streams))
    _check_ids(found, models)
    return found


def _common_tokenizer(models: Sequence[ComparedModel]) -> Tokenizer:
    """Return the tokenizer of all models.

    Raises:
        TokenizerError: their tokens, or the sizes of their outputs, differ.
    """
    first, *others = models
    tokenizer = Tokenizer.load(first.tekken)
    for other in others:
        sizes = [model.checkpoint.config.text.vocab_size for model in (first, other)]
        if sizes[0] != sizes[1]:
            raise TokenizerError(
                f"{first.label} has {sizes[0]:,} tokens and {other.label} {sizes[1]:,}, so their "
                "distributions cannot be compared. Compare models with the same tokenizer."
            )
        if other.tekken == first.tekken:
            continue
        if (token := _different_token(tokenizer, Tokenizer.load(other.tekken))) is not None:
            raise TokenizerError(
                f"{first.label} and {other.label} have different tokenizers: token {token} is not "
                "the same. Compare models with the same one, or name it, as in "
                "NAME@tokenizer=FILE."
            )
    return tokenizer


def _different_token(one: Tokenizer, other: Tokenizer) -> int | None:
    """Return the first id that stands for another token; None if all are equal.

    Names of control tokens have changed between versions of one tokenizer, and do not count.
    """
    if one.vocab_size != other.vocab_size:
        return min(one.vocab_size, other.vocab_size)
    for token in range(one.vocab_size):
        if one.is_control(token) != other.is_control(token):
            return token
        if not one.is_control(token) and one.token_bytes(token) != other.token_bytes(token):
            return token
    return None


def _check_ids(text: ComparedText, models: Sequence[ComparedModel]) -> None:
    highest = max(int(sequence.max()) for sequence in text.sequences)
    size = models[0].checkpoint.config.text.vocab_size
    if highest >= size:
        raise TokenizerError(
            f"the tokenizer gives the token id {highest}, and {models[0].label} has {size} of "
            "them. Name its own one, as in NAME@tokenizer=FILE."
        )
