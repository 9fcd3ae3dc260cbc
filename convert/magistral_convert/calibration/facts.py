"""Facts about a calibrated conversion, which its card and its config.json tell."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magistral_convert.output_format import METADATA


@dataclass(frozen=True)
class Quality:
    """Next-token distributions on held-out text, against those of the original weights.

    divergence: mean Kullback-Leibler divergence in nats. same_top: share of tokens whose likeliest
    successor is the same. tokens: how many were compared.
    """

    divergence: float
    same_top: float
    tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)

    def describe(self) -> str:
        """Return the figures in one line."""
        return (
            f"{self.divergence:.4f} nats mean KL divergence from the original, the same likeliest "
            f"token in {self.same_top:.1%} ({self.tokens:,} tokens of held-out text)"
        )


@dataclass(frozen=True)
class CalibrationFacts:
    """Calibration of a conversion: tokens of text, whether it is the one that ships, the result.

    imatrix: name of the file with the importance of columns, where one was given.
    """

    tokens: int
    is_default_text: bool
    method: str
    quality: Quality
    imatrix: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what config.json holds under METADATA."""
        text = "default" if self.is_default_text else "own"
        imatrix = {"imatrix": self.imatrix} if self.imatrix else {}
        return {
            "calibration": {"method": self.method, "text": text, "tokens": self.tokens} | imatrix,
            "quality": self.quality.as_dict(),
        }


def read_quality(folder: Path) -> Quality | None:
    """Return the quality that a converted folder records; None where it has none."""
    config = json.loads((folder / "config.json").read_bytes())
    found = config.get(METADATA, {}).get("quality")
    return Quality(**found) if found else None
