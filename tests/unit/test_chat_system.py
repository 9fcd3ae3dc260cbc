"""System prompts from checkpoints and files."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from magistral_mlx.chat.messages import System, Thought
from magistral_mlx.chat.system import (
    CARD_DEFAULT,
    default_system,
    fill_placeholders,
    split_thinking,
    system_from_file,
    without_thinking,
)
from magistral_mlx.errors import PromptError


def test_the_checkpoints_own_prompt_wins(tmp_path: Path):
    (tmp_path / "SYSTEM_PROMPT.txt").write_text("Think:[THINK]draft[/THINK]Answer.")
    assert default_system(tmp_path, thinking=True) == System(
        ("Think:", Thought("draft"), "Answer.")
    )


def test_without_the_file_a_thinking_model_gets_the_model_cards_prompt(tmp_path: Path):
    system = default_system(tmp_path, thinking=True)
    assert system == CARD_DEFAULT
    before, thought, after = system.content
    assert before.startswith("First draft your thinking process (inner monologue)")
    assert before.endswith("\n\nYour thinking process must follow the template below:")
    assert isinstance(thought, Thought)
    assert thought.text.startswith("Your thoughts or/and draft")
    assert after == "Here, provide a self-contained response."


def test_without_the_file_another_model_gets_none(tmp_path: Path):
    assert default_system(tmp_path, thinking=False) is None


def test_a_model_without_thinking_tokens_gets_its_file_as_plain_text(tmp_path: Path):
    (tmp_path / "SYSTEM_PROMPT.txt").write_text("Use [THINK]tags[/THINK].")
    assert default_system(tmp_path, thinking=False) == System("Use [THINK]tags[/THINK].")


def test_date_and_name_are_filled_in(tmp_path: Path):
    (tmp_path / "SYSTEM_PROMPT.txt").write_text("You are {name}. Today is {today}. {x} {{}}")
    days = {date.today(), date.today() + timedelta(days=1)}  # a test may run past midnight
    system = default_system(tmp_path, thinking=False, name="Mistral Small")
    assert system in [
        System(f"You are Mistral Small. Today is {day}. {{x}} {{{{}}}}") for day in days
    ]
    system = default_system(tmp_path, thinking=False)
    assert system is not None
    assert str(system.content).startswith(f"You are {tmp_path.name}.")


def test_yesterday_is_the_day_before():
    filled = fill_placeholders("{yesterday} {today}", "x", date(2025, 3, 1))
    assert filled == "2025-02-28 2025-03-01"


def test_a_system_file_is_split_likewise_and_kept_to_the_letter(tmp_path: Path):
    file = tmp_path / "system.txt"
    file.write_bytes("\ufeffÀ toi:\r\n[THINK] un\nbrouillon [/THINK]\nRéponds, {name}.\n".encode())
    assert system_from_file(file, thinking=True) == System(
        ("À toi:\n", Thought(" un\nbrouillon "), "\nRéponds, {name}.\n")
    )


def test_an_empty_file_means_no_system_prompt(tmp_path: Path):
    (tmp_path / "SYSTEM_PROMPT.txt").touch()
    assert default_system(tmp_path, thinking=True) is None
    assert system_from_file(tmp_path / "SYSTEM_PROMPT.txt", thinking=True) is None


def test_several_thinking_parts():
    assert split_thinking("a[THINK]b[/THINK]c[THINK][/THINK][THINK]d[/THINK]") == System(
        ("a", Thought("b"), "c", Thought(""), Thought("d"))
    )


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        "[THINK]open",
        "closed[/THINK]",
        "[/THINK]wrong order[THINK]",
        "[THINK]a[THINK]b[/THINK]",
        "[THINK]a[/THINK]b[/THINK]",
        "[THINK]a[/THINK][THINK]b",
        "[think]a[/think]",
        "",
    ],
)
def test_marks_that_do_not_pair_stay_text(text: str):
    assert split_thinking(text) == System(text)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(PromptError, match=r"no system prompt file .*nowhere\.txt"):
        system_from_file(tmp_path / "nowhere.txt", thinking=True)


def test_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(PromptError, match="is a folder"):
        system_from_file(tmp_path, thinking=True)


def test_a_file_that_is_not_utf8_says_where(tmp_path: Path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(PromptError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        system_from_file(tmp_path / "latin.txt", thinking=True)


def test_a_file_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "SYSTEM_PROMPT.txt").write_text("x")

    def refuse(*args: object, **kwargs: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PromptError, match="cannot be read: Permission denied"):
        default_system(tmp_path, thinking=True)


def test_without_thinking_a_prompt_keeps_its_other_parts():
    system = System(("Be brief.\n\n", Thought("draft"), "Then answer."))
    assert without_thinking(system) == System("Be brief.\n\nThen answer.")
    assert without_thinking(System((Thought("draft"),))) is None


def test_without_thinking_plain_text_stays_as_it_is():
    assert without_thinking(System("Use [THINK]tags[/THINK].")) == System(
        "Use [THINK]tags[/THINK]."
    )


def test_without_thinking_the_model_cards_prompt_no_longer_asks_for_thoughts(tmp_path: Path):
    spelled = "".join(
        f"[THINK]{part.text}[/THINK]" if isinstance(part, Thought) else part
        for part in CARD_DEFAULT.content
    )
    (tmp_path / "SYSTEM_PROMPT.txt").write_text(f"{spelled}\n")
    from_file = default_system(tmp_path, thinking=True)
    assert from_file is not None and from_file != CARD_DEFAULT
    for system in (CARD_DEFAULT, from_file):
        short = without_thinking(system)
        assert short is not None and isinstance(short.content, str)
        assert "thinking" not in short.content and "thoughts" not in short.content
        assert "Markdown" in short.content
