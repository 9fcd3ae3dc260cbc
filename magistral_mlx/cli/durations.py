"""Durations as people write them."""

from __future__ import annotations

import re

from magistral_mlx.errors import InvalidOption

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str | None) -> float | None:
    """Seconds of "90", "30s", "10m", "1.5h" or "2d"; None of None and of "never".

    Raises:
        InvalidOption: it is no duration.
    """
    if text is None or text == "never":
        return None
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([smhd]?)\s*", text)
    if not found:
        raise InvalidOption(f"{text!r} is no duration: write it as in 30s, 10m, 1.5h or never.")
    return float(found[1]) * _SECONDS[found[2]]
