"""How an answer is shown in the terminal chat while it comes."""

import io
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from magistral_mlx.cli.chatting.view import AnswerView, Unpadded, finished_length
from magistral_mlx.events import (
    Event,
    Finished,
    Prefill,
    Stats,
    Text,
    Thinking,
    ToolCall,
    TurnsDropped,
)

_STATS = Stats(10, 5, 5, 0.1, 0.1, 0.1, 0)


def split(text: str) -> tuple[str, str]:
    end = finished_length(text)
    return text[:end], text[end:]


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("", ""),
        ("A paragraph that goes on", ""),
        ("One.\n\n", ""),
        ("One.\n\nTwo", "One.\n\n"),
        ("One.\n\n\nTwo.\n\nThree", "One.\n\n\nTwo.\n\n"),
        ("- a\n\n  more of a", ""),
        ("- a\n\n- b", "- a\n\n"),
        ("```\na\n\nb\n", ""),
        ("```\na\n\nb\n```\n\nText", "```\na\n\nb\n```\n\n"),
        ("````\n```\n\nb", ""),
        ("````\n```\n````\n\nText", "````\n```\n````\n\n"),
        ("~~~\n```\n\n~~~\n\nText", "~~~\n```\n\n~~~\n\n"),
        ("```py\nx = '```'\n\ny", ""),
        ("| a |\n|---|\n| 1 |\n\nText", "| a |\n|---|\n| 1 |\n\n"),
    ],
)
def test_what_will_not_change_any_more(text: str, finished: str):
    assert split(text) == (finished, text[len(finished) :])


@given(st.text("a`~\n -|#", max_size=60), st.integers(0, 60))
def test_what_is_finished_stays_finished_whatever_comes(text: str, cut: int):
    assert finished_length(text[:cut]) <= finished_length(text)


def show(*events: Event, unfolded: bool = False, toggle_after: int | None = None) -> str:
    """What is left on a terminal of 60×12 after the events, control sequences left out."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=60, height=12, color_system=None
    )
    with AnswerView(console, unfolded=unfolded) as view:
        for n, event in enumerate(events):
            view.add(event)
            view.draw()
            if n == toggle_after:
                view.toggle()
    return console.file.getvalue()  # type: ignore[attr-defined]


def plain(output: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output).replace("\r", "")


def test_markdown_is_rendered_block_by_block():
    shown = plain(
        show(Text("# Ti"), Text("tle\n\nSome *text* here.\n\n"), Text("Last"), finished())
    )
    assert "Title" in shown and "# Ti" not in shown.splitlines()[-6:]
    assert "Some text here." in shown
    assert shown.rstrip().endswith("Last")


def finished() -> Finished:
    return Finished("stop", _STATS)


def test_the_prompt_is_counted_while_it_is_read():
    shown = plain(show(Prefill(0, 5000), Prefill(1000, 5000, 12.4), finished()))
    assert "reading 1,000 of 5,000 tokens · 12 s left" in shown


def test_thinking_leaves_one_line():
    shown = plain(show(Thinking("secret ", 1), Thinking("thoughts", 3), Text("Hi"), finished()))
    assert "thinking · 1 token · 0 s · ctrl-t shows it" in shown
    assert "thought for 3 tokens" in shown and "secret" not in shown


def test_thinking_is_shown_where_it_is_unfolded():
    events = [Thinking("secret ", 1), Thinking("thoughts", 2), Text("Hi"), finished()]
    for shown in (show(*events, unfolded=True), show(*events, toggle_after=0)):
        assert "secret thoughts" in plain(shown)


def test_an_answer_that_ends_in_its_thinking_leaves_the_line_as_well():
    assert "thought for 1 token, " in plain(show(Thinking("hm", 1), Finished("cancelled", _STATS)))


def test_calls_and_dropped_turns_are_told():
    shown = plain(show(TurnsDropped(2, 4), ToolCall("look", '{"at": 1}'), finished()))
    assert 'calls look({"at": 1})' in shown
    assert "The oldest 2 turns are left out" in " ".join(shown.split())


def test_a_block_higher_than_the_terminal_shows_its_end_and_is_whole_afterwards():
    lines = [f"line {n}" for n in range(40)]
    output = show(Text("```\n" + "\n".join(lines) + "\n```"), finished())
    shown = plain(output)
    for line in lines:
        assert line in shown
    console = Console(file=io.StringIO(), width=60, height=12)
    console.print(Unpadded("\n".join(lines), 3))
    assert console.file.getvalue().split() == ["line", "37", "line", "38", "line", "39"]  # type: ignore[attr-defined]


def test_text_that_looks_like_markup_stays_text():
    shown = plain(
        show(Thinking("[red]"), Text("[bold]x[/bold] :smile:"), finished(), unfolded=True)
    )
    assert "[red]" in shown and "[bold]x[/bold]" in shown and ":smile:" in shown


@pytest.mark.parametrize(
    "sentence",
    [
        "नमस्ते दुनिया यह एक लंबी पंक्ति है जो चौड़ाई भर देती है",  # Hindi
        "வணக்கம் உலகம் இது ஒரு நீண்ட வரி ஆகும் அகலத்தை நிரப்பும்",  # Tamil
        "សួស្តីពិភពលោក នេះគឺជាបន្ទាត់វែងមួយដែលបំពេញទទឹង",  # Khmer
        "హలో ప్రపంచం ఇది వెడల్పును నింపే పొడవైన పంక్తి",  # Telugu
        "สวัสดีชาวโลก นี่คือบรรทัดยาวที่เต็มความกว้าง",  # Thai
        "你好世界 这是一行很长的文字 它填满了整个宽度 一直到末尾",  # Chinese
    ],
)
def test_lines_of_every_script_stand_on_the_screen_once(sentence: str):
    """Drawn again while it grows, a line must not take more rows than are drawn over."""
    screen = Screen(40)
    console = Console(file=screen, force_terminal=True, width=40, height=20, color_system=None)
    words = (f"{sentence}. " * 2).split(" ")
    with AnswerView(console, unfolded=False) as view:
        for word in words:
            view.add(Text(f"{word} "))
            view.draw()
    rows = [row.strip() for row in screen.rows]
    assert " ".join(filter(None, rows)) == " ".join(filter(None, words))
    assert "" not in rows[: len(list(filter(None, rows)))], "a padded line has wrapped"


class Screen(io.StringIO):
    """A terminal of a width on which spacing marks take a cell, as on most, and no others do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rows, self._width, self._row, self._column = [""], width, 0, 0

    def write(self, text: str) -> int:
        for control, number, final, char in re.findall(r"(\x1b\[([?\d;]*)([A-Za-z]))|(.|\n)", text):
            if control:
                self._obey(final, int(number) if number.isdigit() else 1)
            elif char == "\r":
                self._column = 0
            elif char == "\n":
                self._go_down()
            else:
                self._put(char)
        return len(text)

    def _obey(self, final: str, number: int) -> None:
        if final == "A":
            self._row -= number
        elif final == "K":
            self.rows[self._row] = ""

    def _go_down(self) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self.rows):
            self.rows.append("")

    def _put(self, char: str) -> None:
        width = cell_len(char) or int(unicodedata.category(char) == "Mc")
        if self._column + width > self._width:
            self._go_down()
        self._column += width
        self.rows[self._row] += char


def test_control_characters_of_the_model_are_shown():
    shown = show(Text("a\x1b]0;X\x07b\n"))
    assert "␛]0;X␇" in shown
    assert "\x07" not in shown
