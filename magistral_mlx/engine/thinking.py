"""Control of the thinking trace: a token budget, a minimum, and a stop for loops."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from magistral_mlx.engine.loops import LoopDetector, LoopRule
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.events import Forced, ThinkingEnd
from magistral_mlx.thinking_marks import ThinkingMarks

CLOSING_PHRASE = "\n\nI have thought about this for long enough. I will give my answer now.\n"
_PATIENCE = 64  # last tokens of a budget, in which the end of a sentence closes the trace


@dataclass(frozen=True)
class ThinkingRules(ThinkingMarks):
    """Rules for the thinking trace. They do not make a model open one.

    enabled: whether a trace may be opened at all.
    inside: whether the prompt ends in an open trace.
    budget: largest number of tokens between the marks, in all traces of the answer together,
        including the closing phrase. Near its end the next end of a sentence closes the trace.
    minimum: number of tokens before which the trace cannot end.
    closing: tokens put before `close` if the model did not end the trace itself; omitted if the
        budget is shorter.
    loops: the rule that closes a trace which repeats itself; None for no such rule.
    """

    open: int
    close: int
    enabled: bool = True
    inside: bool = False
    budget: int | None = None
    minimum: int = 0
    closing: tuple[int, ...] = ()
    loops: LoopRule | None = field(default_factory=LoopRule)


class ThinkingControl:
    """State of one generation's thinking trace.

    end: what ended the trace: "model" itself, "budget" or "loop"; None while it is open, or if
    there was none.
    """

    def __init__(self, thinking: ThinkingRules, vocabulary: Vocabulary | None = None) -> None:
        """Start the state. The vocabulary is used to find ends of sentences and words."""
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
        self._forced: list[int] = []  # tokens still to be forced, the last one first
        self._reason: Forced | None = None
        self.inside = thinking.inside
        self.end: ThinkingEnd | None = None

    def copy(self) -> ThinkingControl:
        """Return an independent copy."""
        other = copy.copy(self)
        other._forced = self._forced.copy()
        other._loops = self._loops.copy() if self._loops else None
        return other

    @property
    def may_open(self) -> bool:
        """Whether the model may open a trace; not again after a trace was closed by a rule."""
        return self._reason is None and not self.inside

    @property
    def forced(self) -> tuple[int, Forced] | None:
        """The next token and the reason, if it is forced; else None."""
        if self._forced and self._reason:
            return self._forced[-1], self._reason
        return None

    @property
    def banned(self) -> frozenset[int]:
        """Ids that must not come next."""
        thinking = self._thinking
        if self.inside and self._used < thinking.minimum:
            return thinking.exits | {thinking.close}
        if not self.inside and not self.may_open:
            return frozenset((thinking.open,))
        return frozenset()

    def observe(self, token: int) -> None:
        """Update the state with the next token, sampled or forced."""
        thinking = self._thinking
        was_inside, self.inside = self.inside, thinking.inside_after(token, self.inside)
        if not was_inside:
            if self.inside:
                self.end = None
        elif not self.inside:
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
        """The closing phrase, if it fits into the budget."""
        thinking = self._thinking
        fits = thinking.budget is None or len(thinking.closing) < thinking.budget
        return thinking.closing if fits else ()
