"""Fields of other APIs that constrain an answer, refused with the name of the one to give.

Whoever sends such a field would take any answer for one that keeps to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from magistral_mlx.server.request_body import RequestBody

CHAT = "/v1/chat/completions"  # the API that takes all of them
_LENGTH = ("max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict")
_STOP = ("stop", "stop_sequences")
_FORM = ("response_format", "output_format", "json_schema", "guided_json")
_OTHERS = (
    *("regex", "choice", "grammar", "structured_outputs"),
    *("guided_regex", "guided_choice", "guided_grammar"),
    *("logit_bias", "stop_token_ids", "min_tokens", "ignore_eos"),
)
# Values that constrain nothing.
_NOTHING: tuple[Any, ...] = (None, False, "", [], {}, -1, {"type": "text"})


def instead(*, length: str, stop: str, form: str) -> dict[str, str]:
    """Fields of other APIs -> what to give in place of each, on an API with these fields."""
    return {
        **dict.fromkeys(_LENGTH, length),
        **dict.fromkeys(_STOP, stop),
        **dict.fromkeys(_FORM, form),
        **dict.fromkeys(_OTHERS, CHAT),
    }


class WithoutForeignFields(RequestBody):
    """A body that refuses the fields of other APIs that would constrain the answer."""

    instead: ClassVar[Mapping[str, str]]

    @model_validator(mode="before")
    @classmethod
    def _refuse_foreign_fields(cls, value: Any) -> Any:
        for name, other in cls.instead.items() if isinstance(value, dict) else ():
            if name in cls.model_fields or value.get(name) in _NOTHING:
                continue
            hint = f"{CHAT} takes it" if other == CHAT else f"Give {other}"
            raise ValueError(f"{name} is not supported here. {hint}")
        return value
