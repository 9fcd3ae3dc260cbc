"""Sizes as people write them."""

from __future__ import annotations

import re

from magistral_mlx.errors import InvalidOption

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


def parse_size(text: str | None) -> int | None:
    """Bytes of "20GB", "512MiB" or "1.5G"; None of None.

    Raises:
        InvalidOption: it is no size.
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]i?|)B?\s*", text)
    units = _UNITS | _BINARY
    try:
        assert found
        return int(float(found[1]) * units[found[2]])
    except (AssertionError, ValueError, OverflowError):
        raise InvalidOption(f"{text!r} is no size: write it as in 20GB or 512MiB.") from None
