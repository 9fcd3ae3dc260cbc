"""The languages of a text, and how often it switches from one to another.

Runs of one script are told apart by their characters. Within a script, chunks of words are
classified by py3langid among the languages that Magistral was made for; one that may be several
counts as the language before it. Formulas, code and the names of variables are left out.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from magistral_mlx.requirements import check_extra

_LANGUAGES = (
    *("ar", "bn", "de", "el", "en", "es", "fa", "fr", "hi", "id", "it", "ja", "ko", "ms"),
    *("ne", "pl", "pt", "ro", "ru", "sr", "tr", "uk", "vi", "zh"),
)
_ALIKE = {"ms": "id", "ne": "hi"}  # what cannot be told apart in a sentence
_CHUNK, _LEAST = 160, 60  # letters that are classified at once, and the fewest of them
_CERTAIN = 0.9  # probability from which on a chunk's language counts
_SHORTEST_RUN = 4  # letters in another script: Greek letters of formulas are no Greek
_DENSE = 3  # letters that a character of a script without spaces is worth
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA")
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|`[^`\n]*`|\\[A-Za-z]+",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class LanguageUse:
    """letters: of each language, by its code. switches: changes from one language to another."""

    letters: dict[str, int]
    switches: int


def language_use(text: str) -> LanguageUse:
    """Find the languages of a text.

    Raises:
        MissingExtra: py3langid is not installed.
    """
    letters: dict[str, int] = {}
    last, switches = None, 0
    for language, size in _languages(text):
        letters[language] = letters.get(language, 0) + size
        switches += last not in (None, language)
        last = language
    return LanguageUse(letters, switches)


def _languages(text: str) -> Iterator[tuple[str, int]]:
    """Yield the language and the letters of each chunk whose language is certain."""
    identify = _identifier().classify
    for words in _chunks(text):
        size = sum(map(_size, words))
        language, probability = identify(" ".join(words))
        # In most scripts other than Latin a few letters tell the language.
        short = size < _LEAST and _script(words[0][0]) == "LATIN"
        if probability >= _CERTAIN and not short:
            yield _ALIKE.get(language, language), size


def _chunks(text: str) -> Iterator[list[str]]:
    """Yield words of one script, about `_CHUNK` letters at a time."""
    chunk: list[str] = []
    size, script = 0, ""
    runs: list[tuple[str, list[str]]] = []
    for word in _WORD.findall(_NO_PROSE.sub(" ", text)):
        its = _script(word[0])
        if runs and runs[-1][0] == its:
            runs[-1][1].append(word)
        else:
            runs.append((its, [word]))
    for its, words in runs:
        if sum(map(_size, words)) < _SHORTEST_RUN:
            continue
        for word in words:
            if chunk and (its != script or size >= _CHUNK):
                yield chunk
                chunk, size = [], 0
            script = its
            chunk.append(word)
            size += _size(word)
    if chunk:
        yield chunk


def _size(word: str) -> int:
    return len(word) * (_DENSE if _script(word[0]) == "CJK" else 1)


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """Return the script of a letter, as Unicode names it; Japanese and Chinese are one."""
    name = unicodedata.name(character, "").partition(" ")[0]
    return "CJK" if name in _EAST_ASIAN else name


@lru_cache(maxsize=1)
def _identifier() -> Any:
    check_extra("telling languages apart", "eval", "py3langid")
    from py3langid import langid

    found = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    found.set_languages(_LANGUAGES)
    return found
