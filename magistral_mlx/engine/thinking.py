"""Thinking, controlled: a budget for the trace, a minimum, and an end to loops."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from magistral_mlx.engine.loops import LoopDetector, LoopRule
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.events import Forced, ThinkingEnd

CLOSING_PHRASE = "\n\nI have thought about this for long enough. I will give my answer now.\n"
_PATIENCE = 64  # tokens before the end of a budget in which the end of a sentence is waited for


@dataclass(frozen=True)
class ThinkingRules:
    """What holds for the thinking trace. A model that opens none is left alone.

    open, close: ids of [THINK] and [/THINK].
    exits: other ids that would end the trace, which are the end of the turn and [TOOL_CALLS].
    enabled: whether a trace may be opened at all.
    inside: whether the prompt itself ends in an open trace.
    budget: tokens between the marks at most, in all traces of the answer together, with the
        closing phrase. Towards its end the first end of a sentence closes the trace.
    minimum: tokens before which the trace cannot end.
    closing: the phrase that is put before `close` where the model did not end the trace itself. A
        budget that is shorter than the phrase goes without.
    loops: the rule by which a trace that repeats itself is closed; None lets it.
    """

    open: int
    close: int
    exits: frozenset[int] = frozenset()
    enabled: bool = True
    inside: bool = False
    budget: int | None = None
    minimum: int = 0
    closing: tuple[int, ...] = ()
    loops: LoopRule | None = field(default_factory=LoopRule)


class ThinkingControl:
    """The trace of one generation, from token to token, where thinking is enabled.

    `end` tells how the trace ended: "model" by itself, "budget" or "loop" by us; None while it is
    open, or if there was none.
    """

    def __init__(self, thinking: ThinkingRules, vocabulary: Vocabulary | None = None) -> None:
        """The vocabulary finds the ends of sentences, and tells prose from numbers in loops."""
        self._thinking = thinking
        self.open, self.exits = thinking.open, thinking.exits
        limited = thinking.budget is not None
        self._sentence_ends = vocabulary.sentence_ends if vocabulary and limited else frozenset()
        self._loops = (
            LoopDetector(thinking.loops, vocabulary.is_word if vocabulary else lambda token: True)
            if thinking.loops
            else None
        )
        self._used = 0
        self._forced: list[int] = []  # what is still to be put, the last one first
        self._reason: Forced | None = None
        self.inside = thinking.inside
        self.end: ThinkingEnd | None = None

    def copy(self) -> ThinkingControl:
        """One that goes its own way from here."""
        other = copy.copy(self)
        other._forced = self._forced.copy()
        other._loops = self._loops.copy() if self._loops else None
        return other

    @property
    def may_open(self) -> bool:
        """Whether the model may open a trace; not again where we had to close one."""
        return self._reason is None and not self.inside

    @property
    def forced(self) -> tuple[int, Forced] | None:
        """The next token, and why, where it is not the model's to choose."""
        if self._forced and self._reason:
            return self._forced[-1], self._reason
        return None

    @property
    def banned(self) -> frozenset[int]:
        """The ids that the model cannot choose next."""
        thinking = self._thinking
        if self.inside and self._used < thinking.minimum:
            return thinking.exits | {thinking.close}
        if not self.inside and not self.may_open:
            return frozenset((thinking.open,))
        return frozenset()

    def observe(self, token: int) -> None:
        """The token that came, chosen or forced."""
        thinking = self._thinking
        if not self.inside:
            if token == thinking.open:
                self.inside, self.end = True, None
        elif token == thinking.close or token in thinking.exits:
            self.inside = False
            self.end = self._reason or "model"
            self._forced.clear()
        elif self._forced:
            self._forced.pop()
        else:
            self._used += 1
            self._reason = self._must_close(token)
            if self._reason:
                self._forced = [*self._phrase(), thinking.close][::-1]

    def _must_close(self, token: int) -> Forced | None:
        if self._loops and self._loops.add(token):
            return "loop"
        budget = self._thinking.budget
        if budget is None:
            return None
        left = budget - self._used - len(self._phrase())
        patience = min(_PATIENCE, budget // 8)
        at_end = token in self._sentence_ends and self._used >= self._thinking.minimum
        return "budget" if left <= 0 or (left <= patience and at_end) else None

    def _phrase(self) -> tuple[int, ...]:
        """The closing phrase, where the budget has room for it."""
        thinking = self._thinking
        fits = thinking.budget is None or len(thinking.closing) < thinking.budget
        return thinking.closing if fits else ()
