"""Stop strings: where an answer ends, found in its text as it comes."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, and never a part of one.

    The end of the text waits while it may be the beginning of a stop string. `matched` is the one
    that was found; from then on nothing comes through.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        """`include`: whether the stop string that is found comes through as well."""
        self._stops = tuple(stops)
        self._include = include
        self._waiting = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """More text of the answer -> what may be shown now."""
        if self.matched is not None:
            return ""
        text = self._waiting + text
        found = [(text.find(stop), -len(stop), stop) for stop in self._stops if stop in text]
        if found:
            place, _, self.matched = min(found)
            self._waiting = ""
            return text[: place + len(self.matched)] if self._include else text[:place]
        waits = max((_beginning(stop, text) for stop in self._stops), default=0)
        self._waiting = text[len(text) - waits :]
        return text[: len(text) - waits]

    def finish(self) -> str:
        """Return the text that is still held back when the generation ends."""
        waiting, self._waiting = self._waiting, ""
        return waiting


def _beginning(stop: str, text: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
