"""How hard to think, in the words of the APIs, as budgets of thinking tokens."""

from __future__ import annotations

from typing import Literal

from magistral_mlx.api.options import ThinkingOption

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

# Magistral was trained without levels of effort: a budget ends its trace at a sentence's end and
# has it answer. "high" and above leave the end to the model.
BUDGETS: dict[str, ThinkingOption] = {
    "none": "off",
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": "on",
    "xhigh": "on",
    "max": "on",
}
DESCRIPTION = (
    "How long to think at most: none is no thinking, minimal 512 tokens, low 2,048, medium 8,192; "
    "high, xhigh and max leave the end to the model, as does leaving this out. At the end of a "
    "budget the trace is closed and the answer follows."
)


def thinking_of(effort: Effort | None) -> ThinkingOption:
    """What `Options.thinking` is for an effort; "on" where none is named."""
    return "on" if effort is None else BUDGETS[effort]
