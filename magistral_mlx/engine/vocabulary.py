"""What the engine may know of a tokenizer: the bytes of each id, and how text is split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

_SENTENCE_ENDS = tuple(mark.encode() for mark in (".", "!", "?", "\n", "。", "！", "？", "।", "؟"))


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
        """Whether the text of `token` has a letter, of any script; a part of a character may."""
        if not 0 <= token < len(self.tokens):
            return False
        text = self.tokens[token].decode("utf-8", "replace")
        return any(letter.isalpha() or letter == "\ufffd" for letter in text)
