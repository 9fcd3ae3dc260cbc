"""Length of a prompt that is far too long, estimated before all of it is tokenized.

Tokenizing 60 MiB of text takes half a minute, to find out that no context could hold it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from magistral_mlx.chat.messages import Assistant, Message, System, Thought, ToolResult, User
from magistral_mlx.chat.tokenizer import Tokenizer

_PIECE = 8  # characters that are tokenized at once, for each token of the context
_SURELY = 2  # so many times the context, which the cuts between pieces cannot explain


def estimated_overflow(texts: Iterable[str], context: int, tokenizer: Tokenizer) -> int | None:
    """About how many tokens the texts have, where `context` cannot hold them; None where it may.

    No more is tokenized than twice what the context holds.
    """
    given = list(texts)
    total = sum(map(len, given))
    if total <= _PIECE * context:
        return None  # tokenizing them takes no time
    seen = tokens = 0
    for piece in _pieces(given, _PIECE * context):
        seen += len(piece)
        tokens += len(tokenizer.encode(piece))
        if tokens > _SURELY * context:
            return tokens * total // seen
    return None


def texts_of(messages: Sequence[Message]) -> Iterator[str]:
    """All texts of a conversation that become tokens, but for calls."""
    for message in messages:
        match message:
            case System(content) | User(content):
                for part in (content,) if isinstance(content, str) else content:
                    if isinstance(part, str | Thought):
                        yield part if isinstance(part, str) else part.text
            case Assistant(text, thinking):
                yield text
                yield thinking or ""
            case ToolResult(content):
                yield content


def _pieces(texts: Iterable[str], length: int) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), length):
            yield text[start : start + length]
