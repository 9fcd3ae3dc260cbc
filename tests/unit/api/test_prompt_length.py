"""Prompts that are far too long are refused before all of them is tokenized."""

from __future__ import annotations

from typing import Any

import pytest

from magistral_mlx import Assistant, System, User
from magistral_mlx.api.prompt_length import estimated_overflow, texts_of
from magistral_mlx.chat.messages import Thought, ToolResult
from tests.engine_models import tiny_tokenizer

CONTEXT = 100


class Counting:
    """A tokenizer that counts the characters that it is given."""

    def __init__(self) -> None:
        self.characters = 0

    def encode(self, text: str) -> list[int]:
        self.characters += len(text)
        return tiny_tokenizer().encode(text)


@pytest.mark.parametrize(
    "texts",
    [
        ["word " * 100_000],
        ["a" * 500_000],
        ["Ünïcödé 世界 🙂 " * 40_000],
        ["short", "\n" * 9, "one two three " * 50_000],
        ["many ", "texts "] * 100_000,
    ],
)
def test_a_text_that_is_far_too_long_is_hardly_looked_at(texts: list[str]):
    tokenizer: Any = Counting()
    about = estimated_overflow(texts, CONTEXT, tokenizer)
    assert tokenizer.characters < 20 * CONTEXT
    whole = sum(len(tiny_tokenizer().encode(text)) for text in texts[:4])
    assert about is not None and about > 2 * CONTEXT
    if len(texts) == 1:
        assert about == pytest.approx(whole, rel=0.2)


@pytest.mark.parametrize("texts", [[], [""], ["word " * 90], ["a" * 50, "b" * 49], [" " * 700]])
def test_what_may_fit_is_tokenized_as_ever(texts: list[str]):
    tokenizer: Any = tiny_tokenizer()
    assert estimated_overflow(texts, CONTEXT, tokenizer) is None


def test_all_texts_of_a_conversation_count():
    messages = [
        System(("one", Thought("two"))),
        User("three"),
        Assistant("four", "five"),
        ToolResult("six"),
        User(("seven",)),
    ]
    assert " ".join(texts_of(messages)) == "one two three four five six seven"
