"""The Tekken tokenizer, read by mistral-common, and an incremental detokenizer."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magistral_mlx.errors import TokenizerError
from magistral_mlx.thinking_marks import ThinkingMarks

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

FILE_NAME = "tekken.json"
# Far above every model's, so that a damaged file can neither hang nor fill memory.
_MOST_SPECIAL = 100_000
_SPECIAL_COUNT = re.compile(rb'"default_num_special_tokens"\s*:\s*([0-9][0-9.]*)')
_LARGEST_OF_IMAGE = {"image_patch_size": 1024, "spatial_merge_size": 64, "max_image_size": 1 << 15}
_GET_ONE = (
    "Copy tekken.json from the original model's repository into that folder, or name a folder or "
    "file that has it as the tokenizer."
)


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids of the control tokens that we act on; None where the vocabulary lacks the token."""

    bos: int
    eos: int
    think: int | None
    end_think: int | None
    tool_calls: int | None
    call_id: int | None
    args: int | None
    image: int | None
    image_break: int | None
    image_end: int | None

    @property
    def thinking_marks(self) -> ThinkingMarks:
        """The tokens that open and end a thinking trace."""
        exits = (self.eos,) if self.tool_calls is None else (self.eos, self.tool_calls)
        return ThinkingMarks(self.think, self.end_think, frozenset(exits))


_NAMES = {
    "bos": "<s>",
    "eos": "</s>",
    "think": "[THINK]",
    "end_think": "[/THINK]",
    "tool_calls": "[TOOL_CALLS]",
    "call_id": "[CALL_ID]",
    "args": "[ARGS]",
    "image": "[IMG]",
    "image_break": "[IMG_BREAK]",
    "image_end": "[IMG_END]",
}


class Tokenizer:
    """A Tekken vocabulary with its control tokens and the prompt format of its version.

    Make one with `Tokenizer.load`. Reading is safe from several threads.
    """

    def __init__(
        self, mistral: MistralTokenizer[Any, Any, Any, Any, Any], tekken: Tekkenizer
    ) -> None:
        self.mistral = mistral
        self._tekken = tekken
        ids = {
            field: tekken.get_special_token(name) if tekken.is_special(name) else None
            for field, name in _NAMES.items()
        }
        self.special = SpecialIds(**ids)  # type: ignore[arg-type]  # load checked bos and eos

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Tokenizer:
        """Load `path`, a tekken file or the folder that holds `tekken.json`.

        Raises TokenizerError for one that is missing, cannot be read, is damaged, or is not a
        Tekken vocabulary of a version that mistral-common knows.
        """
        file = _find(Path(path))
        # Not resolved: in the hub's cache the name is a link, and mistral-common goes by the name.
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
        from mistral_common.tokens.tokenizers.tekken import is_tekkenizer

        try:
            _check_special_count(file)
            mistral = MistralTokenizer.from_file(file)
        except OSError as error:
            raise TokenizerError(f"{file} cannot be read: {error.strerror or error}.") from error
        except Exception as error:
            # It checks what it reads with asserts and lookups, so damage shows as any exception.
            raise TokenizerError(_describe_error(file, error)) from error
        tekken = mistral.instruct_tokenizer.tokenizer
        assert is_tekkenizer(tekken)
        if (wrong := _wrong_number(tekken)) is not None:
            raise TokenizerError(
                f"{file} is not a Tekken vocabulary that can be used ({wrong}). {_GET_ONE}"
            )
        for name in (_NAMES["bos"], _NAMES["eos"]):
            if not tekken.is_special(name):
                raise TokenizerError(f"{file} has no {name} token. {_GET_ONE}")
        return cls(mistral, tekken)

    @property
    def version(self) -> str:
        """The version of the prompt format, such as "v13"."""
        return str(self._tekken.version.value)

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""
        return self._tekken.n_words

    @property
    def has_thinking_tokens(self) -> bool:
        """Whether the vocabulary has the thinking tokens."""
        return self.special.think is not None and self.special.end_think is not None

    @property
    def has_image_tokens(self) -> bool:
        """Whether the vocabulary has image tokens and an image configuration."""
        return self._tekken.image is not None

    def is_control(self, token: int) -> bool:
        """Whether `token` is a control token, which never stands for text."""
        return token < self._tekken.num_special_tokens

    def control_name(self, token: int) -> str:
        """Return the spelling of a control token, such as "[THINK]"; "" for an ordinary one."""
        return self._tekken.id_to_piece(token) if self.is_control(token) else ""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of `token`, often part of a character; none for a control token.

        An id past the vocabulary, which a padded output layer can give, has none either.
        """
        return b"" if token >= self.vocab_size else self._tekken.id_to_byte_piece(token)

    def encode(self, text: str) -> list[int]:
        """Encode plain `text`, without <s>; a control token spelled in it stays text."""
        return self._tekken.encode(text, bos=False, eos=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """Decode `tokens`, control tokens left out, invalid bytes as U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")


class Detokenizer:
    """Incremental detokenizer that returns whole characters only.

    A token may end inside a character; its bytes are kept for the next one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the characters that `token` completes; "" if none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """Return incomplete bytes as U+FFFD, or "", and reset."""
        return self._decoder.decode(b"", final=True)


def _find(path: Path) -> Path:
    try:
        file = path / FILE_NAME if path.is_dir() else path
        found = file.is_file()
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not found:
        where = f"{path} has no {FILE_NAME}" if file != path else f"there is no file {path}"
        raise TokenizerError(f"{where}, the tokenizer. {_GET_ONE}")
    if file.suffix != ".json" or "tekken" not in file.name:
        raise TokenizerError(
            f"{file} is not a Tekken tokenizer: its name must hold 'tekken' and end in .json. "
            + _GET_ONE
        )
    return file


def _check_special_count(file: Path) -> None:
    """Raise `ValueError` for more special tokens than mistral-common could list in memory."""
    found = _SPECIAL_COUNT.search(file.read_bytes())
    if found and not float(found[1]) <= _MOST_SPECIAL:
        raise ValueError(f"default_num_special_tokens is {found[1].decode()}")


def _wrong_number(tekken: Tekkenizer) -> str | None:
    """Describe the first number that no model has, or return None."""
    for name in _NAMES.values():
        if tekken.is_special(name) and not 0 <= tekken.get_special_token(name) < tekken.n_words:
            return f"{name} has the id {tekken.get_special_token(name)} of {tekken.n_words}"
    image = tekken.image
    for field, most in _LARGEST_OF_IMAGE.items():
        value = getattr(image, field, None)
        if image is not None and not (type(value) is int and 1 <= value <= most):
            return f"{field} is {value}; expected 1 to {most}"
    return None


def _describe_error(file: Path, error: Exception) -> str:
    if file.stat().st_size == 0:
        what = "it is empty"
    elif isinstance(error, UnicodeDecodeError | RecursionError) or "JSON" in type(error).__name__:
        what = f"it is damaged or cut short: {error}"
    else:
        reason = " ".join(str(error).split())[:200]
        what = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return f"{file} is not a Tekken vocabulary that can be used ({what}). {_GET_ONE}"
