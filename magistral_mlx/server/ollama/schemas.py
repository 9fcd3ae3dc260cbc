"""Schemas of requests, as Ollama's API has them."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from magistral_mlx.server.foreign_fields import WithoutForeignFields, instead
from magistral_mlx.server.openai.sampling_schemas import refuse_unsupported
from magistral_mlx.server.option_values import Stop, option_field
from magistral_mlx.server.request_body import JSONObject, Many, RequestBody, RequestSchema
from magistral_mlx.server.request_translation import FunctionSchema

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DEVICE = (
    "num_ctx, num_gpu, num_thread and others of the machine are the server's: they are ignored."
)
_LITERALS = ("const", "default")  # of a JSON schema: null is a value of theirs
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # schemas by any name


def _keep_alive(value: Any) -> Any:
    """Seconds of "5m", "1h30m", 300 or -1, which is forever."""
    import re

    if isinstance(value, str):
        parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)", value)
        text = value.removeprefix("-")
        if parts and "".join(map("".join, parts)) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
            value = -seconds if value.startswith("-") else seconds
        else:
            try:
                value = float(value)
            except ValueError:
                raise ValueError('it must be a duration, as in "5m", 300 or -1') from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError('it must be a duration, as in "5m", 300 or -1')
        return -1.0 if value < 0 else min(float(value), 1e9)
    return value


KeepAlive = Annotated[float, BeforeValidator(_keep_alive)]


class OllamaOptions(RequestSchema):
    """Options of a model. What is left out or null has the model card's default."""

    num_predict: Annotated[
        int | None, Field(ge=-2, description="Tokens of the answer at most; negative for no limit.")
    ] = None
    temperature: Annotated[float | None, option_field("temperature", le=100)] = None
    top_k: Annotated[int | None, option_field("top_k", ge=-1, le=1_000_000)] = None
    top_p: Annotated[float | None, option_field("top_p", ge=0)] = None
    min_p: Annotated[float | None, option_field("min_p")] = None
    seed: Annotated[
        int | None, Field(description="The same one gives the same answer; -1 is a random one.")
    ] = None
    stop: Annotated[Stop | None, Field(description="Texts that end the answer.")] = None
    repeat_penalty: Annotated[float | None, option_field("repetition_penalty", le=10)] = None
    repeat_last_n: Annotated[int | None, option_field("repetition_window", ge=-1, le=1_000_000)] = (
        None
    )
    presence_penalty: Annotated[float | None, option_field("presence_penalty")] = None
    frequency_penalty: Annotated[float | None, option_field("frequency_penalty")] = None
    num_ctx: Annotated[JsonValue, Field(description=f"Ignored. {_DEVICE}")] = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_kept_to(cls, value: Any) -> Any:
        return refuse_unsupported(value)


class OllamaFunctionCall(RequestSchema):
    name: str
    arguments: JsonValue = None


class OllamaToolCall(RequestSchema):
    """A call of an earlier turn."""

    id: str | None = None
    function: OllamaFunctionCall


class OllamaMessage(RequestSchema):
    """A turn. Images are Base64, without the head of a data URL."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Many[str] | None = None
    tool_calls: Many[OllamaToolCall] | None = None
    tool_name: Annotated[str | None, Field(description="Function that a result is of.")] = None
    tool_call_id: str | None = None


def _without_nulls(schema: Any) -> Any:
    """A JSON schema without its nulls, as Go writes what was left out."""
    match schema:
        case dict():
            return {
                key: _of_keyword(key, value)
                for key, value in schema.items()
                if value is not None or key in _LITERALS
            }
        case list():
            return [_without_nulls(each) for each in schema]
    return schema


def _of_keyword(key: str, value: Any) -> Any:
    if key in (*_LITERALS, "enum"):
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: _without_nulls(schema) for name, schema in value.items()}
    return _without_nulls(value)


class OllamaFunction(FunctionSchema):
    """A function of a tool."""

    parameters: Annotated[JSONObject | None, BeforeValidator(_without_nulls)] = None


class OllamaTool(RequestSchema):
    """A function that the model may call."""

    type: Literal["function", ""] | None = None
    function: OllamaFunction


class OllamaRequest(WithoutForeignFields):
    """Fields of both endpoints that generate."""

    instead: ClassVar = instead(length="options.num_predict", stop="options.stop", form="format")

    model: str
    stream: Annotated[
        bool | None, Field(description="Lines of JSON, the default, or one answer.")
    ] = None
    format: Annotated[
        Literal["", "json"] | JSONObject | None,
        Field(description='"json" for any JSON object, or a JSON schema.'),
    ] = None
    options: OllamaOptions | None = None
    keep_alive: Annotated[
        KeepAlive | None,
        Field(
            description='Time that the model stays in memory without a request: 300, "5m", 0 for '
            "none, negative for ever."
        ),
    ] = None
    think: Annotated[
        bool | Literal["low", "medium", "high", "max", "minimal", "none"] | None,
        Field(description="Whether to think, or for how long."),
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, option_field("top_logprobs")] = None
    truncate: Annotated[
        bool | None,
        Field(description="false fails where a conversation outgrows the context."),
    ] = None


class OllamaChatRequest(OllamaRequest):
    """A conversation to answer; without messages the model is loaded, or unloaded."""

    messages: Many[OllamaMessage] | None = None
    tools: Many[OllamaTool] | None = None


class OllamaGenerateRequest(OllamaRequest):
    """A prompt to answer; without one the model is loaded, or unloaded."""

    prompt: str | None = None
    images: Many[str] | None = None
    system: Annotated[str | None, Field(description="System prompt.")] = None
    raw: Annotated[bool | None, Field(description="Continue the prompt, without a template.")] = (
        None
    )
    suffix: Annotated[str | None, Field(description="Refused: it cannot fill in a middle.")] = None
    template: Annotated[str | None, Field(description="Refused: the template is fixed.")] = None
    context: Annotated[
        JsonValue, Field(description="Refused: send the conversation to /api/chat.")
    ] = None


class OllamaModelName(RequestBody):
    """A model by its name."""

    model: str | None = None
    name: Annotated[str | None, Field(description="The old name of model.")] = None
    stream: bool | None = None

    @property
    def named(self) -> str | None:
        return self.model or self.name
