"""The engine's view of a tokenizer: the bytes of each id, and an encoder for plain text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

_SENTENCE_ENDS = tuple(mark.encode() for mark in (".", "!", "?", "\n", "。", "！", "？", "।", "؟"))
# First UTF-8 bytes of letters of more than one byte; E2 begins symbols, F0 emoji.
_FIRST_BYTES_OF_LETTERS = frozenset(range(0xC3, 0xF0)) - {0xE2}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The vocabulary of a loaded model; create it once, since derived data is cached in it.

    tokens: the bytes of each id, b"" for control tokens. eos: the id that ends a turn.
    encode: plain text -> ids.
    """

    tokens: Sequence[bytes]
    eos: int
    encode: Callable[[str], Sequence[int]]

    @cached_property
    def sentence_ends(self) -> frozenset[int]:
        """Ids of tokens that end a sentence or a line."""
        return frozenset(
            token for token, piece in enumerate(self.tokens) if piece.endswith(_SENTENCE_ENDS)
        )

    def is_word(self, token: int) -> bool:
        """Whether the text of `token` contains a letter of any script, or the start of one."""
        piece = self.tokens[token] if 0 <= token < len(self.tokens) else b""
        text = piece.decode("utf-8", "ignore")
        if any(unicodedata.category(character)[0] in "LM" for character in text):
            return True
        unfinished = piece[len(text.encode()) :]
        return bool(unfinished) and unfinished[0] in _FIRST_BYTES_OF_LETTERS
