"""How thinking is asked for in text."""

from __future__ import annotations

from typing import Literal

from magistral_mlx.errors import InvalidOption


def parse_thinking(text: str) -> Literal["on", "off"] | int:
    """The option that "on", "off" or a number of tokens stands for.

    Raises:
        InvalidOption: none of them.
    """
    match text.lower():
        case "on":
            return "on"
        case "off":
            return "off"
    if text.isascii() and text.isdigit():
        return int(text)
    raise InvalidOption(f"thinking is {text!r}; it must be on, off or a number of tokens.")
