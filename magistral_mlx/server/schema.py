"""What the schemas of all requests share."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

_DEEPEST = 64  # far below what the JSON of a schema needs, and what a parser's stack bears


class Request(BaseModel):
    """A part of a request. Fields that nobody knows are left alone, as clients send many."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    """Refuse what would only fail later, far from where it can be named."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            break
    else:
        raise ValueError(f"must not be nested deeper than {_DEEPEST} levels")
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: it holds half of a surrogate pair") from None
    except ValueError:
        raise ValueError("must not hold NaN or Infinity") from None
    return value


def _inner(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, dict) else value
    return [inner for inner in values if isinstance(inner, dict | list)]


JSONObject = Annotated[dict[str, Any], AfterValidator(_checked)]
