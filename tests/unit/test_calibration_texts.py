"""The text that ships for calibration: what is in it, how much, and that held-out text is not."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

import magistral_mlx.demo
from magistral_convert.calibration.text import (
    HELD_OUT,
    SEQUENCE,
    encode_held_out,
    encode_marked,
    held_out_text,
    shipped_parts,
)
from magistral_convert.options import ConvertOptions
from magistral_mlx.chat.tokenizer import Tokenizer
from tests.tekken import full_tokenizer

DEMO = Path(magistral_mlx.demo.__file__).parent / "checkpoint/tekken.json"
TEMPLATE = re.compile(r"\[(SYSTEM_PROMPT|AVAILABLE_TOOLS)\].*?\[/\1\]", re.DOTALL)
SHARED = 24  # characters; a shorter run may be anyone's

# A word or a letter that only this language of the 24 has in the texts.
LANGUAGES = {
    "en": "queue", "fr": "facteur", "de": "Waage", "el": "ραδιόφωνο", "hi": "घड़ीसाज़", "id": "sumur",
    "it": "bottoni", "ja": "井戸", "ko": "느티나무", "ms": "perahu", "ne": "छापाखाना",
    "pl": "gazety", "pt": "relógio", "ro": "moara", "ru": "ворона", "sr": "голубове",
    "es": "pared", "tr": "muhtar",
    "uk": "криниця", "vi": "nước dùng", "ar": "الراديو", "bn": "ডাকঘর", "zh": "修鞋",
    "fa": "نانوایی",
}  # fmt: skip
FORMATS = (
    "[SYSTEM_PROMPT]", "[INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]",
    "[TOOL_RESULTS]", "[TOOL_CONTENT]", "[THINK]", "</s>",
)  # fmt: skip
CODE = (
    "def get(", "fn tokenize", "func New", "async function", "#include <stdio.h>", "public record",
    "struct TimerView", "SELECT ", "runs-on:", "<!doctype html>", "diff --git", "std::optional",
)  # fmt: skip


def plain(text: str) -> str:
    """The text without what the template makes every prompt say."""
    return re.sub(r"\s+", " ", TEMPLATE.sub("", text))


def runs(text: str, length: int) -> set[str]:
    return {text[start : start + length] for start in range(len(text) - length + 1)}


@pytest.fixture(scope="module")
def parts() -> list[str]:
    return shipped_parts()


@pytest.mark.parametrize(
    ("name", "least", "most"), [("magistral", 16_384, 32_768), ("demo", 32_768, 65_536)]
)
def test_there_is_enough_to_calibrate_on(name: str, least: int, most: int, parts: list[str]):
    tokenizer = full_tokenizer() if name == "magistral" else Tokenizer.load(DEMO)
    assert least <= sum(len(encode_marked(part, tokenizer)) for part in parts) <= most
    assert len(encode_held_out(tokenizer)) >= SEQUENCE * HELD_OUT


def test_every_language_every_format_and_many_kinds_of_code_are_in_it(parts: list[str]):
    text = "\n".join(parts)
    missing = [what for what in (*LANGUAGES.values(), *FORMATS, *CODE) if what not in text]
    assert not missing


def test_languages_have_several_texts_of_their_own(parts: list[str]):
    """By script, where a script is one language's among the 24 or nearly."""
    for script in ("GREEK", "DEVANAGARI", "HANGUL", "HIRAGANA", "CYRILLIC", "ARABIC", "BENGALI"):
        long = [
            part
            for part in parts
            if sum(unicodedata.name(c, "").startswith(script) for c in part) > 40
        ]
        assert len(long) >= 3, script


def test_held_out_text_shares_no_sentence_with_it(parts: list[str]):
    calibration, held_out = (plain(text) for text in ("\n".join(parts), held_out_text()))
    assert not runs(calibration, SHARED) & runs(held_out, SHARED)


def test_nothing_is_repeated(parts: list[str]):
    """Between parts; code repeats itself within one."""
    seen: set[str] = set()
    for part in parts:
        found = runs(plain(part), 80)
        assert not found & seen, part[:60]
        seen |= found


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 8192),
        ({"mode": "nvfp4"}, 8192),
        ({"method": "gptq"}, 32_768),
        ({"method": "gptq", "calibration_tokens": 512}, 512),
    ],
)
def test_compensation_takes_more_text_than_a_search(options: dict, tokens: int):
    assert ConvertOptions(**options).text_tokens == tokens
