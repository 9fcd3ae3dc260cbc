"""Findings of `magistral-mlx doctor`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["good", "warning", "bad"]
MARKS: dict[Verdict, str] = {"good": "✓", "warning": "!", "bad": "✗"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and whether it is good enough.

    words: what was found. advice: what to do about it. figures: measured values for a bug report.
    """

    what: str
    verdict: Verdict
    words: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
