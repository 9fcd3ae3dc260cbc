"""The line editor of the chat: its keys, its completions, its history."""

from __future__ import annotations

import os
import re
import signal
import sys
import termios
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from magistral_mlx.files import user_path

if TYPE_CHECKING:
    from prompt_toolkit.input import Input

_STYLE = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack", "prompt": "bold"})


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Keep keys that are pressed while nothing reads them: neither echoed nor changed.

    It is there when the next input begins, with its Enter keys still Enter keys.
    """
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    quiet = termios.tcgetattr(terminal)
    quiet[0] &= ~termios.ICRNL
    quiet[3] &= ~(termios.ECHO | termios.ICANON)  # Ctrl-C stays a signal
    termios.tcsetattr(terminal, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


@contextmanager
def bracketed_paste() -> Iterator[None]:
    """Have the terminal mark pasted text, so that its line ends are no Enter keys."""
    sys.stdout.write("\x1b[?2004h")
    sys.stdout.flush()
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?2004l")
        sys.stdout.flush()


@contextmanager
def interrupts(handle: Callable[[], None]) -> Iterator[None]:
    """Call `handle` for Ctrl-C where it comes as a signal, in place of ending the program."""
    before = signal.signal(signal.SIGINT, lambda *_: handle())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def line_editor(
    source: Input,
    history: Path,
    commands: Mapping[str, bool],
    toolbar: Callable[[], str],
    show_thinking: Callable[[], None],
    tell: Callable[[str], None],
) -> PromptSession[str]:
    """The editor of a chat.

    Args:
        history: the file that keeps what was typed.
        commands: name -> whether a path follows it.
        toolbar: the line below the input.
        show_thinking: what Ctrl-T does.
        tell: called once if what was typed can no longer be kept, while the input is shown.
    """
    return PromptSession(
        HTML("<prompt>❯ </prompt>"),
        input=source,
        multiline=True,
        prompt_continuation="  ",
        history=_history(history, tell),
        completer=_Completer(commands),
        complete_while_typing=True,
        enable_open_in_editor=True,
        key_bindings=_bindings(show_thinking),
        reserve_space_for_menu=5,
        bottom_toolbar=lambda: [("class:bottom-toolbar", toolbar())],
        style=_STYLE,
    )


def _bindings(show_thinking: Callable[[], None]) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        """Send; a backslash before it, Alt-Enter and Ctrl-J begin another line."""
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add("c-t")
    def _(event: KeyPressEvent) -> None:
        run_in_terminal(show_thinking)

    return keys


def history_file() -> Path:
    """Where what was typed is kept; MAGISTRAL_MLX_HOME names another folder."""
    if home := os.environ.get("MAGISTRAL_MLX_HOME"):
        folder = Path(home)
    elif sys.platform == "darwin":
        folder = Path("~/Library/Application Support/magistral-mlx")
    else:
        folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "magistral-mlx"
    return user_path(folder) / "chat_history"


class _KeptHistory(FileHistory):
    """What was typed, in a file for as long as that can be read and written."""

    def __init__(self, file: Path, tell: Callable[[str], None]) -> None:
        super().__init__(str(file))
        self._tell = tell
        self._lost = False

    def load_history_strings(self) -> Iterable[str]:
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._lose(error)
            return []

    def store_string(self, string: str) -> None:
        if self._lost:
            return
        try:
            super().store_string(string)
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        self._lost = True
        self._tell(f"What you type is not kept for the next time: {error.strerror or error}.")


def _history(file: Path, tell: Callable[[str], None]) -> History:
    """A file that its owner alone can read; in memory where there can be none."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return _KeptHistory(file, tell)


class _Completer(Completer):
    """Commands after a slash, and paths after those that take one."""

    def __init__(self, commands: Mapping[str, bool]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, rest = text[1:].partition(" ")
        if not blank:
            for command in self._commands:
                if command.startswith(name):
                    yield Completion(command, start_position=-len(name))
        elif self._commands.get(name):
            word = _last_word(rest)
            plain = re.sub(r"\\(.)", r"\1", word.lstrip("'\""))
            for found in self._paths.get_completions(Document(plain), complete_event):
                path = re.sub(r"([\s'\"\\])", r"\\\1", plain + found.text)
                yield Completion(path, start_position=-len(word), display=found.display)


def _last_word(text: str) -> str:
    """The file name that is being typed: what follows the last blank that stands for itself."""
    words = re.findall(r"(?:\\.|'[^']*(?:'|$)|\"[^\"]*(?:\"|$)|[^\s'\"\\])+|\\$", text)
    return words[-1] if words and text.endswith(words[-1]) else ""
