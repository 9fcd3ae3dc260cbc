"""The fields of `Options` once more, for type checkers: what may be passed by keyword."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from pydantic import BaseModel

    from magistral_mlx.api.inputs import ToolLike
    from magistral_mlx.api.option_kinds import Default
    from magistral_mlx.api.options import (
        Overflow,
        SpeculationOption,
        ThinkingOption,
        ToolChoice,
    )
    from magistral_mlx.chat.messages import System
    from magistral_mlx.engine.dry import Dry


class OptionFields(TypedDict, total=False):
    """Every option, and none of them required."""

    max_tokens: int | None
    stop: str | Sequence[str]
    stop_token_ids: Iterable[int]
    include_stop: bool
    min_tokens: int
    ignore_eos: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    repetition_window: int | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    dry: bool | Dry
    seed: int | None
    n: int
    time_limit: float | None
    thinking: ThinkingOption
    ask_for_thinking: bool
    min_thinking: int
    keep_thinking: bool
    json_schema: Mapping[str, Any] | str | bool | type[BaseModel] | None
    regex: str | None
    grammar: str | None
    choice: Sequence[str] | None
    tools: Iterable[ToolLike] | None
    tool_choice: ToolChoice
    strict_tools: bool
    parallel_tool_calls: bool
    system: System | str | Default | None
    overflow: Overflow
    image_tokens: int | None
    speculation: SpeculationOption
    adapter: str | None
    logprobs: bool
    top_logprobs: int
    prompt_logprobs: int | None
