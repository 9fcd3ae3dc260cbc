"""Sampling options, shared by chat completions and completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from magistral_mlx.engine.dry import Dry
from magistral_mlx.server.option_values import (
    Stop,
    option_field,
    seed_option,
    stop_option,
    top_p_option,
)
from magistral_mlx.server.request_body import RequestBody, RequestSchema, Table

EXTENSION = "Not in OpenAI's API."


class DryFields(RequestSchema):
    """Settings of DRY, which makes what repeats a sequence less likely."""

    multiplier: Annotated[float | None, option_field("multiplier", of=Dry, le=100)] = None
    base: Annotated[float | None, option_field("base", of=Dry, le=100)] = None
    allowed_length: Annotated[int | None, option_field("allowed_length", of=Dry)] = None
    range: Annotated[int | None, option_field("range", of=Dry)] = None


class SamplingFields(RequestBody):
    """Sampling and length. What is left out or null has the model card's default."""

    temperature: Annotated[float | None, option_field("temperature", le=2)] = None
    top_p: Annotated[float | None, option_field("top_p", "0 is greedy.", ge=0)] = None
    top_k: Annotated[
        int | None, option_field("top_k", "-1 is off as well.", EXTENSION, ge=-1, le=1_000_000)
    ] = None
    min_p: Annotated[float | None, option_field("min_p", EXTENSION)] = None
    seed: Annotated[
        int | None, Field(description="The same one gives the same tokens, whatever else runs.")
    ] = None
    stop: Annotated[
        Stop | None,
        Field(description="Texts that end the answer and are not part of it, 16 at most."),
    ] = None
    n: Annotated[int | None, option_field("n", le=128)] = None
    presence_penalty: Annotated[float | None, option_field("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, option_field("frequency_penalty")] = None
    repetition_penalty: Annotated[
        float | None, option_field("repetition_penalty", EXTENSION, le=10)
    ] = None
    logit_bias: Annotated[Table[float] | None, option_field("logit_bias")] = None
    dry: Annotated[bool | DryFields | None, option_field("dry", EXTENSION)] = None
    user: Annotated[Any, Field(description="Accepted and ignored.")] = None


def sampling_options(request: SamplingFields) -> dict[str, Any]:
    """The fields of `Options` that `request` sets.

    Raises:
        InvalidOption: one that is out of range.
    """
    names = (
        "temperature",
        "min_p",
        "n",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "logit_bias",
    )
    options = {name: getattr(request, name) for name in names}
    options["top_k"] = None if request.top_k is None else max(0, request.top_k)
    options["top_p"] = top_p_option(request.top_p)
    options["seed"] = seed_option(request.seed)
    options["stop"] = stop_option(request.stop)
    options["dry"] = _dry(request.dry)
    return {name: value for name, value in options.items() if value is not None}


def _dry(dry: bool | DryFields | None) -> bool | Dry | None:
    return Dry(**dry.model_dump(exclude_none=True)) if isinstance(dry, DryFields) else dry
