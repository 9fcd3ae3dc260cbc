"""A program on a pseudo-terminal, and what a person sees there."""

from __future__ import annotations

import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from fcntl import ioctl

import pyte

PATIENCE = 60.0  # seconds after which something that should show has not

ENTER, ALT_ENTER, CTRL_C, CTRL_D, CTRL_J, CTRL_T = "\r", "\x1b\r", "\x03", "\x04", "\n", "\x14"
UP = "\x1b[A"


class _Screen(pyte.HistoryScreen):
    """A screen that answers where its cursor is, as terminals do."""

    def __init__(self, columns: int, lines: int, reply: int) -> None:
        super().__init__(columns, lines, history=10_000, ratio=1)
        self._reply = reply

    def write_process_input(self, data: str) -> None:
        os.write(self._reply, data.encode())


class Terminal:
    """Runs `magistral-mlx WORDS` on a terminal of its own; a context manager."""

    def __init__(
        self, *words: str, env: Mapping[str, str] = {}, columns: int = 80, lines: int = 24
    ) -> None:
        self._master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen = _Screen(columns, lines, self._master)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "magistral_mlx.cli.main", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=os.environ | {"TERM": "xterm-256color"} | env,
            start_new_session=True,
            preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    @property
    def screen(self) -> str:
        """What stands on the screen now."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def everything(self) -> str:
        """What stands on the screen and above it."""
        above = [
            "".join(line[column].data for column in range(self._screen.columns)).rstrip()
            for line in self._screen.history.top
        ]
        return "\n".join([*above, self.screen])

    def last_line_with(self, text: str) -> str:
        """The lowest line on the screen that holds `text`."""
        return next((line for line in reversed(self.screen.splitlines()) if text in line), "")

    def send(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, *, gone: str | None = None) -> None:
        """Read until `text` has shown, and `gone` no longer does."""
        while not (text in self.everything and (gone is None or gone not in self.screen)):
            self.read_on(text)

    def read_on(self, awaited: str = "more") -> None:
        """Take in what the program writes next."""
        if not self._read(time.monotonic() + PATIENCE):
            raise AssertionError(
                f"{awaited!r} never showed. The terminal holds:\n{self.everything}"
            )

    def end(self) -> int:
        """Read to the end -> the exit status."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(PATIENCE)

    def _read(self, deadline: float) -> bool:
        """Take in what the program writes next; False at its end, or when it is too late."""
        ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)
