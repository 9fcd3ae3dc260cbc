"""System prompts: the checkpoint's own, a file's, or the model card's default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date, timedelta
from os import PathLike
from pathlib import Path

from magistral_mlx.chat.messages import System, Thought
from magistral_mlx.errors import PromptError
from magistral_mlx.files import is_endless

FILE_NAME = "SYSTEM_PROMPT.txt"
OPEN, CLOSE = "[THINK]", "[/THINK]"

# The default of the Magistral Small 1.2 model card.
CARD_DEFAULT = System(
    (
        "First draft your thinking process (inner monologue) until you arrive at a response. "
        "Format your response using Markdown, and use LaTeX for any mathematical equations. "
        "Write both your thoughts and the response in the same language as the input.\n\n"
        "Your thinking process must follow the template below:",
        Thought(
            "Your thoughts or/and draft, like working through an exercise on scratch paper. "
            "Be as casual and as long as you want until you are confident to generate the "
            "response. Use the same language as the input."
        ),
        "Here, provide a self-contained response.",
    )
)

# The same without the thinking, for answers that are wanted at once.
_CARD_WITHOUT_THINKING = System(
    "Format your response using Markdown, and use LaTeX for any mathematical equations. "
    "Write the response in the same language as the input. Provide a self-contained response."
)


def default_system(
    folder: str | PathLike[str],
    *,
    thinking: bool,
    name: str | None = None,
    tokenizer: Path | None = None,
) -> System | None:
    """Return the default system prompt of the checkpoint in `folder`: its SYSTEM_PROMPT.txt.

    `folder` may be a GGUF file: the prompt then stands beside it, or beside the `tokenizer` (a
    tekken.json), as neither is inside of it. Where there is none: the model card's default if the
    tokenizer has thinking tokens (`thinking`), else none. `{today}`, `{yesterday}` and `{name}`,
    which the files of Mistral Small have, are filled in, the last with `name` or the folder's.
    Raises PromptError if the file cannot be read.
    """
    folder = Path(folder)
    places = [folder]
    if folder.is_file():
        places = [folder.parent, *([tokenizer.parent] if tokenizer else [])]
    text = next((text for place in places if (text := _read(place / FILE_NAME)) is not None), None)
    if text is None:
        return CARD_DEFAULT if thinking else None
    name = name or folder.resolve().name.removesuffix(".gguf")
    return system_from_text(fill_placeholders(text, name, date.today()), thinking=thinking)


def system_from_file(path: str | PathLike[str], *, thinking: bool) -> System | None:
    """Read the system prompt in the file at `path`; an empty file means none.

    Its `[THINK]…[/THINK]` parts become thinking if the tokenizer has the tokens (`thinking`).
    Raises PromptError if the file is missing or cannot be read.
    """
    text = _read(Path(path))
    if text is None:
        raise PromptError(f"there is no system prompt file {path}. Check the path.")
    return system_from_text(text, thinking=thinking)


def marked_text(system: System) -> str:
    """The text of a system prompt, its thinking between `[THINK]` and `[/THINK]`."""
    if isinstance(system.content, str):
        return system.content
    return "".join(
        f"{OPEN}{part.text}{CLOSE}" if isinstance(part, Thought) else part
        for part in system.content
    )


def split_thinking(text: str) -> System:
    """`text` with each `[THINK]…[/THINK]` part as a `Thought`.

    Where the marks do not come in pairs, one after the other, all of it stays text.
    """
    if OPEN not in text or not _in_pairs(text):
        return System(text)
    return System(tuple(_parts(text)))


def without_thinking(system: System) -> System | None:
    """`system` with its thinking parts left out; None if nothing else is in it.

    The model card's default also asks for thinking in words: it becomes one that does not.
    """
    if _words(system) == _words(CARD_DEFAULT):
        return _CARD_WITHOUT_THINKING
    if isinstance(system.content, str):
        return system
    texts = [part.strip() for part in system.content if isinstance(part, str)]
    kept = "\n\n".join(filter(None, texts))
    return System(kept) if kept else None


def fill_placeholders(text: str, name: str, today: date) -> str:
    """`text` with `{name}`, `{today}` and `{yesterday}` filled in; other braces stay."""
    values = {
        "{name}": name,
        "{today}": today.isoformat(),
        "{yesterday}": (today - timedelta(days=1)).isoformat(),
    }
    return re.sub(r"\{(?:name|today|yesterday)\}", lambda found: values[found[0]], text)


def system_from_text(text: str, *, thinking: bool) -> System | None:
    """Return `text` as a system prompt; `thinking` splits off its thinking parts."""
    if not text:
        return None
    return split_thinking(text) if thinking else System(text)


def _words(system: System) -> list[list[str]]:
    """Return the words of each part; a file's whitespace differs from the card's."""
    parts = (system.content,) if isinstance(system.content, str) else system.content
    texts = (part.text if isinstance(part, Thought) else part for part in parts)
    return [words for text in texts if (words := text.split())]


def _marks(text: str) -> list[str]:
    return re.findall(r"\[/?THINK\]", text)


def _in_pairs(text: str) -> bool:
    marks = _marks(text)
    return marks == [OPEN, CLOSE] * (len(marks) // 2)


def _parts(text: str) -> Iterator[str | Thought]:
    for piece in re.split(r"(\[THINK\].*?\[/THINK\])", text, flags=re.DOTALL):
        if piece.startswith(OPEN):
            yield Thought(piece.removeprefix(OPEN).removesuffix(CLOSE))
        elif piece:
            yield piece


def _read(file: Path) -> str | None:
    """Read `file`; None if there is no such file."""
    if is_endless(file):
        raise PromptError(f"{file} is a device or a pipe; a system prompt is a file.")
    try:
        # utf-8-sig: some editors put a byte-order mark first.
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise PromptError(f"{file} is a folder, not a file with a system prompt.") from None
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{file} is not UTF-8 text (byte {error.start}). Save it as UTF-8."
        ) from error
    except OSError as error:
        raise PromptError(f"{file} cannot be read: {error.strerror or error}.") from error
