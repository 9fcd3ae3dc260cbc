"""What chat completions and completions share: how the tokens are drawn."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from magistral_mlx.server.option_values import Stop, seed_option, stop_option, top_p_option
from magistral_mlx.server.schema import Request, RequestBody, Table


class DryFields(Request):
    """What would repeat a sequence of `allowed_length` tokens or more becomes less likely."""

    multiplier: Annotated[float, Field(ge=0, le=100)] = 0.8
    base: Annotated[float, Field(ge=1, le=100)] = 1.75
    allowed_length: Annotated[int, Field(ge=1)] = 2
    range: Annotated[int, Field(ge=1)] | None = None


class SamplingFields(RequestBody):
    """Sampling and length. What is left out or null has the model card's default."""

    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="0 is greedy. The default is 0.7.")
    ] = None
    top_p: Annotated[
        float | None, Field(ge=0, le=1, description="The default is 0.95. 0 is greedy.")
    ] = None
    top_k: Annotated[
        int | None,
        Field(ge=-1, le=1_000_000, description="0 and -1 are off. Not in OpenAI's API."),
    ] = None
    min_p: Annotated[
        float | None, Field(ge=0, le=1, description="0 is off. Not in OpenAI's API.")
    ] = None
    seed: Annotated[
        int | None, Field(description="The same one gives the same tokens, whatever else runs.")
    ] = None
    stop: Annotated[
        Stop | None,
        Field(description="Texts that end the answer and are not part of it, 16 at most."),
    ] = None
    n: Annotated[
        int | None, Field(ge=1, le=128, description="Answers, with the seeds seed, seed + 1, …")
    ] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    repetition_penalty: Annotated[
        float | None, Field(gt=0, le=10, description="1 is off. Not in OpenAI's API.")
    ] = None
    logit_bias: Annotated[
        Table[float] | None, Field(description="Token ids to what is added to their logits.")
    ] = None
    dry: Annotated[
        bool | DryFields | None,
        Field(description="Prevent repetitions as they begin. Not in OpenAI's API."),
    ] = None
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


def _dry(dry: bool | DryFields | None) -> Any:
    if not isinstance(dry, DryFields):
        return dry
    from magistral_mlx.engine.dry import Dry

    return Dry(**dry.model_dump())
