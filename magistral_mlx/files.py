"""Files that people name: their paths, and their text, read whole and within bounds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from magistral_mlx.errors import InvalidOption, MagistralError

LARGEST = 16 << 20  # bytes; more than the model's context holds many times over
_INHERITED = ("/dev/fd/", "/proc/self/fd/", "/dev/stdin")  # what a shell's <(…) names


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path with ~ and ~user expanded.

    Raises:
        InvalidOption: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InvalidOption(
            f"{os.fspath(path)} is in the home folder of a user that this machine does not have."
        ) from None


def is_endless(file: Path) -> bool:
    """Whether there is something that need not have an end: a pipe, a socket or a device."""
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):
        return False  # opening it says why
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def refuse_named_pipe(name: str, mode: int, what: str = "") -> None:
    """Check that a file that may have no end is one that the shell made for this command.

    Raises:
        InvalidOption: a named pipe, which nobody may ever write to.
    """
    if stat.S_ISFIFO(mode) and not name.startswith(_INHERITED):
        raise InvalidOption(f"{what} {name} is a named pipe; a file is expected.".strip())


@contextmanager
def reading(name: str, what: str, kind: type[MagistralError]) -> Iterator[None]:
    """Raise `kind` for what goes wrong while the file `name` is opened and read.

    Args:
        what: what the file is, for errors, as in "image".
    """
    try:
        yield
    except FileNotFoundError:
        hint = "Download it first, and give the file." if "://" in name else "Check the path."
        raise kind(f"there is no {what} {name}. {hint}") from None
    except PermissionError:
        raise kind(f"no permission to read {name}. Change its access rights.") from None
    except OSError as error:
        raise kind(f"{name} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:  # a zero byte in the path
        raise kind(f"{name!r} is not a path: {error}.") from error


def read_text_file(path: str | Path, what: str) -> str:
    """The text of a UTF-8 file: no byte order mark, and lines that end in a newline alone.

    Args:
        what: what the file is, for errors, as in "the system prompt".

    Raises:
        InvalidOption: it cannot be read, is too large, or is not UTF-8 text.
    """
    name = os.fspath(path)
    file = user_path(path)
    try:
        refuse_named_pipe(name, file.stat().st_mode, what)
        with file.open("rb") as opened:
            data = opened.read(LARGEST + 1)
    except OSError as error:
        raise InvalidOption(f"{what} {name} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a NUL in the name
        raise InvalidOption(f"{what} {name!r} cannot be read: {error}.") from error
    return decode_text(data, f"{what} {name}")


def decode_text(data: bytes, what: str) -> str:
    """Bytes of UTF-8 as text: no byte order mark, and lines that end in a newline alone.

    Raises:
        InvalidOption: too many bytes, or not UTF-8.
    """
    if len(data) > LARGEST:
        raise InvalidOption(f"{what} is larger than {LARGEST >> 20} MiB, too much for any context.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidOption(
            f"{what} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def without_final_newlines(text: str) -> str:
    """The text without the newlines at its end, as a shell's $(…) gives it."""
    return text.rstrip("\n")
