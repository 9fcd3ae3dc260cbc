"""Text on its way to a terminal or a pipe, and the three streams of a process."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, TextIO

from magistral_mlx.errors import StorageError

if TYPE_CHECKING:
    from rich.console import RenderableType

# Control characters but newline and tab, as pictures of them; what a terminal would obey, it shows.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)}
_PICTURES |= {0x7F: "\u2421"} | {code: f"<{code:02X}>" for code in range(0x80, 0xA0)}


def visible(text: str) -> str:
    """The text with its control characters shown, newlines and tabs aside."""
    return text.replace("\r\n", "\n").translate(_PICTURES)


def write(text: str, *, err: bool = False, dim: bool = False) -> None:
    """Write text to stdout or stderr: as it is into a pipe, harmless on a terminal.

    Args:
        dim: whether a terminal shows it dimmed.
    """
    stream = sys.stderr if err else sys.stdout
    if stream.isatty():
        text = visible(text)
        text = f"\x1b[2m{text}\x1b[0m" if dim and text else text
    stream.write(text)
    stream.flush()


def say(message: str) -> None:
    """Write a line about the program to stderr."""
    write(f"magistral-mlx: {' '.join(message.split())}\n", err=True)


def print_wide(table: RenderableType) -> None:
    """Print a table at its natural width, so that no figure is cut where the terminal is narrow."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    natural = console.options.update(width=1000)
    width = Measurement.get(console, natural, table).maximum
    Console(highlight=False, width=max(width, 1), soft_wrap=True).print(table, crop=False)


class _Closed(io.TextIOBase):
    """In place of a stdout that was closed before the program began."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise StorageError("stdout is closed, so there is nowhere to write to.")

    def isatty(self) -> bool:
        return False


class _Remarks(io.TextIOBase):
    """A stderr that drops what cannot be written, as its reader may go away before the answer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    @property
    def buffer(self) -> BinaryIO:
        return self._stream.buffer

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True


def prepare_streams() -> None:
    """Give all three streams a place, and have text that their encoding lacks spelled out.

    What stderr cannot take is dropped: the answer goes to stdout all the same. A file that is
    opened later must not take the number of a stream that is closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BytesIO())
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.stderr = _Remarks(sys.stderr)


def stdout_is_unicode() -> bool:
    """Whether stdout takes every character."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def log_to_stderr() -> None:
    """Our own lines, and warnings of uvicorn's; nothing of stdout."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name, level in (("magistral_mlx", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level)
