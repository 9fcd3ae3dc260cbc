"""The command line inside of the test's own process: what it prints, and its exit status."""

from __future__ import annotations

import io
import signal
import sys
from dataclasses import dataclass
from unittest import mock

import pytest

from magistral_mlx.cli import main as command_line


@dataclass
class Done:
    """What a command left behind."""

    status: int
    stdout: bytes
    stderr: str

    @property
    def refusal(self) -> str:
        """The one line of an error, without the program's name."""
        assert self.status == 2, self.stderr
        assert self.stdout == b""
        assert self.stderr.endswith("\n") and self.stderr.count("\n") == 1, self.stderr
        assert self.stderr.startswith("magistral-mlx: ")
        return self.stderr.removeprefix("magistral-mlx: ").strip()


def run(*words: str, stdin: bytes = b"", encoding: str = "utf-8", terminal: bool = False) -> Done:
    """Run `magistral-mlx WORDS`.

    Args:
        terminal: whether stdout and stderr say that they are a terminal.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    for stream in streams:
        stream.isatty = lambda: terminal  # type: ignore[method-assign]
    out, err = streams
    reader = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    before = signal.getsignal(signal.SIGINT)
    with (
        mock.patch.multiple(
            sys, argv=["magistral-mlx", *words], stdin=reader, stdout=out, stderr=err
        ),
        pytest.raises(SystemExit) as leaving,
    ):
        command_line.main()
    signal.signal(signal.SIGINT, before)
    out.flush()
    err.flush()
    return Done(
        int(leaving.value.code or 0),
        out.buffer.getvalue(),  # type: ignore[attr-defined]
        err.buffer.getvalue().decode(),  # type: ignore[attr-defined]
    )
