"""Values of the APIs as `Options` takes them."""

from __future__ import annotations

from magistral_mlx.server.refusals import BadRequest
from magistral_mlx.server.schema import Many

_MOST_STOPS = 16

Stop = str | Many[str]


def seed_option(seed: int | None) -> int | None:
    """Any whole number will do."""
    return None if seed is None else seed % 2**32


def top_p_option(top_p: float | None) -> float | None:
    """OpenAI allows 0, which leaves the likeliest token alone."""
    return 1e-6 if top_p == 0 else top_p


def stop_option(stop: Stop | None) -> tuple[str, ...] | None:
    """The stop texts; an empty list or text is none.

    Raises:
        BadRequest: too many.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(texts) > _MOST_STOPS:
        raise BadRequest(f"stop holds {len(texts)} texts; it may hold {_MOST_STOPS}.", param="stop")
    return tuple(text for text in texts if text) or None
