"""What the engine may know of a tokenizer: the bytes of each id, and how text is split."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

_SENTENCE_ENDS = tuple(mark.encode() for mark in (".", "!", "?", "\n", "。", "！", "？", "।", "؟"))
# Of the scripts that a tokenizer may cut inside a letter; E2 begins symbols, F0 emoji.
_FIRST_BYTES_OF_LETTERS = frozenset(range(0xC3, 0xF0)) - {0xE2}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The bytes of each id, b"" for control tokens; the id that ends a turn; ids of plain text.

    Make one for a loaded model and keep it: what is derived from it is kept with it.
    """

    tokens: Sequence[bytes]
    eos: int
    encode: Callable[[str], Sequence[int]]

    @cached_property
    def sentence_ends(self) -> frozenset[int]:
        """The ids of tokens that end a sentence or a line."""
        return frozenset(
            token for token, piece in enumerate(self.tokens) if piece.endswith(_SENTENCE_ENDS)
        )

    def is_word(self, token: int) -> bool:
        """Whether the text of `token` has a letter, of any script, or begins one."""
        piece = self.tokens[token] if 0 <= token < len(self.tokens) else b""
        text = piece.decode("utf-8", "ignore")
        if any(unicodedata.category(character)[0] in "LM" for character in text):
            return True
        unfinished = piece[len(text.encode()) :]
        return bool(unfinished) and unfinished[0] in _FIRST_BYTES_OF_LETTERS
