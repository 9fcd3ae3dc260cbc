"""Token sequences for calibration, from the text that ships or from a user's files.

The text that ships is in `texts/`: the files of `calibration`, by kind and in parts that a line of
`----` ends, and `held_out.txt`, which is never calibrated on and shares no sentence with them. They
were written for this, in the model's 24 languages. In Magistral's tokens they are 26,700 and 4,100.
Control tokens are spelled out in it, as the prompt
template places them. In a user's file such a spelling stays text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.errors import InvalidOption, TokenizerError
from magistral_mlx.files import user_path

DEFAULT = "default"  # stands for the text that ships
SEQUENCE = 512  # tokens of a sequence
HELD_OUT = 8  # sequences
_LEAST = 1024  # tokens of text that a user gives
_MOST_BYTES = 64 << 20  # of one file; more is not read
_TEXTS = Path(__file__).parent / "texts"
_SEPARATOR = re.compile(r"^----$", re.MULTILINE)
_CONTROL = re.compile(
    r"(<s>|</s>|\[/?INST\]|\[/?SYSTEM_PROMPT\]|\[/?AVAILABLE_TOOLS\]|\[/?TOOL_RESULTS\]"
    r"|\[TOOL_CALLS\]|\[TOOL_CONTENT\]|\[ARGS\]|\[CALL_ID\]|\[/?THINK\])"
)

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class CalibrationText:
    """tokens: (S, SEQUENCE) to calibrate on. held_out: the same, to measure quality on."""

    tokens: Tokens
    held_out: Tokens
    is_default: bool = True

    @property
    def identity(self) -> str:
        """Digest of all tokens."""
        digest = hashlib.sha256(self.tokens.tobytes())
        digest.update(self.held_out.tobytes())
        return digest.hexdigest()


def calibration_text(
    files: Sequence[str], tokenizer_file: Path, vocab_size: int, tokens: int
) -> CalibrationText:
    """Read, tokenize and cut calibration text.

    Args:
        files: paths, or DEFAULT for the text that ships; none of them means that.
        tokens: how many at most. More text than that is taken from all over it.

    Raises:
        InvalidOption: a file cannot be read, is not text, or has too little of it.
        TokenizerError: the tokenizer has ids that the model does not.
    """
    tokenizer = Tokenizer.load(tokenizer_file)
    streams = []
    for file in files or (DEFAULT,):
        if file == DEFAULT:
            parts = shipped_parts()
            streams.append([token for part in parts for token in encode_marked(part, tokenizer)])
        else:
            streams.append(encode_file(file, tokenizer))
    held_out = encode_held_out(tokenizer)
    sequences = [_sequences(stream) for stream in streams]
    found = np.concatenate(sequences)
    most = max(1, tokens // SEQUENCE)
    if len(found) > most:
        found = found[np.linspace(0, len(found) - 1, most).astype(int)]
    is_default = set(files) <= {DEFAULT}
    text = CalibrationText(found, _sequences(held_out)[:HELD_OUT], is_default)
    highest = int(max(text.tokens.max(), text.held_out.max()))
    if highest >= vocab_size:
        raise TokenizerError(
            f"{tokenizer_file} gives the token id {highest}, and the model has {vocab_size} of "
            "them. Name its own tokenizer with --tokenizer."
        )
    return text


def encode_marked(text: str, tokenizer: Tokenizer) -> list[int]:
    """Encode text whose control tokens are spelled out; those that are unknown are left out."""
    control = {
        tokenizer.control_name(token): token
        for token in takewhile(tokenizer.is_control, range(tokenizer.vocab_size))
    }
    ids = [tokenizer.special.bos] if not text.startswith("<s>") else []
    for part in _CONTROL.split(text):
        if _CONTROL.fullmatch(part):
            ids += [control[part]] if part in control else []
        elif part:
            ids += tokenizer.encode(part)
    return ids


def encode_held_out(tokenizer: Tokenizer) -> list[int]:
    """Encode the text that ships and is never calibrated on."""
    return encode_marked(held_out_text(), tokenizer)


def encode_file(
    file: str, tokenizer: Tokenizer, option: str = "--calibration", least: int = _LEAST
) -> list[int]:
    """Encode a user's text file, with the beginning of a sequence before it.

    Args:
        option: that names the file, for errors.
        least: tokens of text that it must have.

    Raises:
        InvalidOption: it cannot be read, is not text, or has too little of it.
    """
    path = user_path(file)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES)
    except OSError as error:
        raise InvalidOption(
            f"{option} {file} cannot be read: {error.strerror or error}. Name a text file, or none."
        ) from None
    text = raw.decode("utf-8", "ignore" if len(raw) == _MOST_BYTES else "replace")
    if "\0" in text or text.count("\ufffd") > len(text) // 100:
        raise InvalidOption(
            f"{option} {file} is not text in UTF-8. Name a text file, such as the questions and "
            "documents that the model is for."
        )
    ids = [tokenizer.special.bos]
    step = 1 << 16  # a tokenizer's time grows faster than a text
    for start in range(0, len(text), step):
        ids += tokenizer.encode(text[start : start + step])
    if len(ids) <= least:
        raise InvalidOption(
            f"{option} {file} has {len(ids) - 1:,} tokens, and at least {least:,} are needed. Give "
            f"a longer text, or add the one that ships: {option} {DEFAULT}."
        )
    return ids


def _sequences(ids: Sequence[int]) -> Tokens:
    """Cut ids into (S, SEQUENCE); fewer than one sequence are repeated."""
    if len(ids) < SEQUENCE:
        ids = (list(ids) * (SEQUENCE // len(ids) + 1))[:SEQUENCE]
    whole = len(ids) // SEQUENCE * SEQUENCE
    return np.array(ids[:whole], np.int32).reshape(-1, SEQUENCE)


def shipped_parts() -> list[str]:
    """Return the texts that ship to calibrate on."""
    files = sorted((_TEXTS / "calibration").glob("*.txt"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [part.strip() for text in texts for part in _SEPARATOR.split(text)]


def held_out_text() -> str:
    """Return the text that ships to measure quality on."""
    return (_TEXTS / "held_out.txt").read_text(encoding="utf-8")
