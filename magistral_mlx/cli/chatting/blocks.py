"""Markdown that is still being written: which part of it will not change any more."""

from __future__ import annotations

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def finished_length(text: str) -> int:
    """Characters at the beginning of `text` that are whole Markdown blocks.

    A block ends at a blank line that is outside of a code fence, once something follows that does
    not continue it: an indented line may belong to a list's item above.
    """
    finished = position = 0
    fence: str | None = None
    after_blank = False
    for line in text.splitlines(keepends=True):
        blank = not line.strip()
        if fence is None and after_blank and not blank and not line[0].isspace():
            finished = position
        fence = _fence_after(line, fence)
        after_blank = blank and fence is None
        position += len(line)
    return finished


def _fence_after(line: str, fence: str | None) -> str | None:
    """The fence that is open after `line`; a fence is closed by one of its kind, no shorter."""
    found = _FENCE.match(line)
    if found is None:
        return fence
    if fence is None:
        return found[1]
    closes = found[1].startswith(fence) and not line[found.end() :].strip()
    return None if closes else fence
