"""Prompts that all runtimes of a comparison get: random words, and their tokens."""

from __future__ import annotations

import random
from pathlib import Path

from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import BenchmarkError
from magistral_mlx.hub import find_tokenizer

_FEWEST_WORDS = 16


class WordPrompts:
    """Random words of a model's vocabulary: new ones for each seed of each comparison.

    A server may have an earlier prompt in its cache, so no two comparisons share one.
    """

    def __init__(self, folder: Path) -> None:
        """Read the tokenizer of a checkpoint.

        Raises:
            TokenizerError: it has none.
            BenchmarkError: it has too few words.
        """
        self._tokenizer = Tokenizer.load(find_tokenizer(folder))
        pieces = (self._tokenizer.token_bytes(id) for id in range(1000, self._tokenizer.vocab_size))
        self._words = [piece.decode() for piece in pieces if _is_word(piece)]
        self._run = random.SystemRandom().getrandbits(64)
        if len(self._words) < _FEWEST_WORDS:
            raise BenchmarkError("the tokenizer has too few words to make prompts of")

    def text(self, count: int, seed: int) -> str:
        """Return `count` words, the same for the same seed."""
        drawn = random.Random(f"{self._run} {seed} {count}")
        return "".join(drawn.choices(self._words, k=count))

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text, as a sequence begins."""
        return [self._tokenizer.special.bos, *self._tokenizer.encode(text)]


def _is_word(piece: bytes) -> bool:
    return len(piece) > 3 and piece[:1] == b" " and piece[1:].isalpha() and piece.islower()
