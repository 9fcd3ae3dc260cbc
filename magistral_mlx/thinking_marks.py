"""The thinking marks: which token opens a trace, and which ones end it.

The parser and the engine's control both follow a trace, the one as it shows tokens, the other ahead
of that, where it looks at drafted ones. The rule by which they do so stands here, once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ThinkingMarks:
    """Ids of the tokens that open and end a thinking trace.

    open, close: ids of [THINK] and [/THINK]; None in a vocabulary without them.
    exits: other ids that end a trace: end of turn and [TOOL_CALLS].
    """

    open: int | None
    close: int | None
    exits: frozenset[int] = frozenset()

    def inside_after(self, token: int, inside: bool) -> bool:
        """Whether a trace is open after `token`, if it was (`inside`) or was not before it."""
        if token == self.open:
            return True
        return inside and token != self.close and token not in self.exits

    def counts(self, token: int, inside: bool) -> bool:
        """Whether `token` counts as thinking: in the trace, or a mark of it."""
        return token in (self.open, self.close) or (inside and token not in self.exits)
