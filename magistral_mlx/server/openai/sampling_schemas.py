"""Sampling options, shared by chat completions and completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from magistral_mlx.engine.dry import Dry
from magistral_mlx.server.option_values import (
    Stop,
    option_field,
    seed_option,
    stop_option,
    top_p_option,
)
from magistral_mlx.server.request_body import Many, RequestBody, RequestSchema, Table

EXTENSION = "Not in OpenAI's API."


# Fields of other servers that change the answer, with the values that change nothing.
_REFUSED: dict[str, tuple[float | bool, ...]] = {
    "allowed_token_ids": (),
    "bad_words": (),
    "documents": (),
    "dynatemp_range": (0,),
    "guided_whitespace_pattern": (),
    "length_penalty": (1,),
    "logits_processors": (),
    "mirostat": (0,),
    "n_probs": (0,),
    "prompt_logprobs": (0,),
    "tfs_z": (1, -1),
    "top_n_sigma": (-1,),
    "truncate_prompt_tokens": (-1,),
    "typical_p": (1, 0),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
_ALL_TOKENS = 1_000_000
_LEAST_BIAS = -100.0
_PAIRS = "llama-server's pairs [id, bias] are taken as well; a bias of false bans the token."
TokenId = Annotated[int, Field(ge=0, le=1_000_000)]


def refuse_unsupported(value: Any) -> Any:
    """Refuse fields of other servers that change the answer, and that this one lacks.

    Raises:
        ValueError: one of them has a value that would change the answer.
    """
    for name, unused in _REFUSED.items() if isinstance(value, dict) else ():
        if value.get(name) not in (None, [], {}, *unused):
            raise ValueError(f"{name} is not supported. Leave it out")
    return value


def _pairs_as_table(value: Any) -> Any:
    """[[id, bias], ...] -> {id: bias}"""
    if not isinstance(value, list):
        return value
    table = {}
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("it must be a table of token ids, or a list of pairs [id, bias]")
        token, bias = pair
        if not str(token).isdecimal():
            raise ValueError("a pair begins with a token id, of which /tokenize tells; not a text")
        table[str(token)] = _LEAST_BIAS if bias is False else bias
    return table


Biases = Annotated[Table[float], BeforeValidator(_pairs_as_table)]


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
        int | None,
        Field(
            description="The same one gives the same tokens, whatever else runs; -1 is a random "
            "one."
        ),
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
    repeat_penalty: Annotated[
        float | None, Field(gt=0, le=10, description="Another name of repetition_penalty.")
    ] = None
    repeat_last_n: Annotated[
        int | None,
        option_field(
            "repetition_window", "0 is no penalty, -1 all tokens.", EXTENSION, ge=-1, le=1_000_000
        ),
    ] = None
    logit_bias: Annotated[Biases | None, option_field("logit_bias", _PAIRS)] = None
    stop_token_ids: Annotated[Many[TokenId] | None, option_field("stop_token_ids", EXTENSION)] = (
        None
    )
    include_stop_str_in_output: Annotated[bool | None, option_field("include_stop", EXTENSION)] = (
        None
    )
    min_tokens: Annotated[int | None, option_field("min_tokens", EXTENSION)] = None
    ignore_eos: Annotated[bool | None, option_field("ignore_eos", EXTENSION)] = None
    dry: Annotated[bool | DryFields | None, option_field("dry", EXTENSION)] = None
    dry_multiplier: Annotated[
        float | None, option_field("multiplier", "As in llama-server.", of=Dry, le=100)
    ] = None
    dry_base: Annotated[float | None, option_field("base", of=Dry, le=100)] = None
    dry_allowed_length: Annotated[int | None, option_field("allowed_length", of=Dry)] = None
    dry_penalty_last_n: Annotated[
        int | None, option_field("range", "-1 is all.", of=Dry, ge=-1)
    ] = None
    user: Annotated[Any, Field(description="Accepted and ignored.")] = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_kept_to(cls, value: Any) -> Any:
        return refuse_unsupported(value)


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
        "min_tokens",
        "ignore_eos",
        "stop_token_ids",
    )
    options = {name: getattr(request, name) for name in names}
    options["top_k"] = None if request.top_k is None else max(0, request.top_k)
    options["top_p"] = top_p_option(request.top_p)
    options["seed"] = seed_option(request.seed)
    options["stop"] = stop_option(request.stop)
    options["include_stop"] = request.include_stop_str_in_output
    options["dry"] = _dry(request)
    if request.repeat_penalty is not None:
        options["repetition_penalty"] = request.repeat_penalty
    if request.repeat_last_n == 0:
        options["repetition_penalty"] = 1.0
    elif request.repeat_last_n is not None:
        everything = request.repeat_last_n < 0
        options["repetition_window"] = _ALL_TOKENS if everything else request.repeat_last_n
    return {name: value for name, value in options.items() if value is not None}


def _dry(request: SamplingFields) -> bool | Dry | None:
    if isinstance(request.dry, DryFields):
        return Dry(**request.dry.model_dump(exclude_none=True))
    if request.dry is not None or not request.dry_multiplier:
        return request.dry
    last = request.dry_penalty_last_n
    settings: dict[str, Any] = {
        "multiplier": request.dry_multiplier,
        "base": request.dry_base,
        "allowed_length": request.dry_allowed_length,
        "range": None if last is None or last < 0 else last,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return False if last == 0 else Dry(**given)
