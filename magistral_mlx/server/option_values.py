"""Options in the schemas of the APIs, and their values as `Options` takes them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from magistral_mlx.api.options import Options, nth_seed
from magistral_mlx.option_spec import Number, declarations, default_text, spec_of
from magistral_mlx.server.errors import BadRequest
from magistral_mlx.server.request_body import Many

_MOST_STOPS = 16

Stop = str | Many[str]


def option_field(name: str, *notes: str, of: type[Any] = Options, **bounds: float) -> Any:
    """The field of a schema that takes the option `name`, with its range, help and default.

    Args:
        notes: sentences for the end of its description.
        of: the dataclass that declares the option.
        bounds: those of the API (ge, gt, le) where they differ from the option's.
    """
    declared = declarations(of)[name]
    spec = spec_of(declared)
    assert spec
    kind = spec.kind
    if isinstance(kind, Number):
        own = {"ge": kind.least, "gt": kind.above, "le": kind.most}
        if "ge" in bounds:
            own["gt"] = None
        bounds = {key: bound for key, bound in (own | bounds).items() if bound is not None}
        meanings = "".join(f" {value:g} is {what}." for value, what in kind.meanings.items())
    else:
        meanings = ""
    usual = default_text(declared)
    told = f" The default is {usual}." if usual else ""
    description = " ".join([f"{spec.help}{meanings}{told}", *notes])
    return Field(
        description=description, ge=bounds.get("ge"), gt=bounds.get("gt"), le=bounds.get("le")
    )


# -1, as some clients send it, is no limit.
MaxTokens = Annotated[
    int | None, option_field("max_tokens", ge=1), BeforeValidator(lambda n: None if n == -1 else n)
]


def seed_option(seed: int | None) -> int | None:
    """Any whole number will do. A negative one is none: as in other servers, -1 is random."""
    return None if seed is None or seed < 0 else nth_seed(seed)


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
