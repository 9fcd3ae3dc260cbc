"""A system prompt of one's own, and the model's request to think before it."""

from typing import Any

import pytest

from magistral_mlx import Magistral, System, Thought, User
from magistral_mlx.api.history import asking_for_thinking

OWN = System(("First draft.", Thought("Your thoughts."), "Then answer."))
YOURS = System("Be brief.")
HELLO = User("Hi")


def prompt_of(magistral: Magistral, **options: Any) -> str:
    return text_of(magistral, [YOURS, HELLO], **options)


def text_of(magistral: Magistral, messages: Any, **options: Any) -> str:
    """The prompt as the tokenizer spells it."""
    tokenizer = magistral.tokenizer
    tokens = magistral.prompt(messages, **options).tokens.tolist()
    return "".join(tokenizer.control_name(id) or tokenizer.decode([id]) for id in tokens)


def test_the_models_own_request_comes_before_a_system_prompt(talker: Magistral):
    without = prompt_of(talker)
    assert without == "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hi[/INST]"
    asked = prompt_of(talker, ask_for_thinking=True)
    alone = text_of(talker, [HELLO])
    assert "[THINK]" in alone and asked == alone.replace(
        "[/SYSTEM_PROMPT]", "\n\nBe brief.[/SYSTEM_PROMPT]"
    )
    assert prompt_of(talker, ask_for_thinking=True, thinking="off") == without


def test_both_stand_in_one_system_prompt():
    assert asking_for_thinking([YOURS, HELLO], OWN) == [
        System((*OWN.content, "Be brief.")),
        HELLO,
    ]


@pytest.mark.parametrize(
    ("messages", "own"),
    [
        ([HELLO], OWN),
        ([YOURS, HELLO], None),
        ([YOURS, HELLO], System("Nothing of thinking.")),
        ([System(("a", Thought("b"))), HELLO], OWN),
        ([YOURS, HELLO, OWN, HELLO], OWN),
    ],
    ids=["no system prompt", "none of its own", "one that does not ask", "asked", "asked later"],
)
def test_nothing_is_changed_where_nothing_is_missing(messages: list[Any], own: System | None):
    assert asking_for_thinking(messages, own) == messages
