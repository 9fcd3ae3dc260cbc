"""Whether and how long to think, as OpenAI, OpenRouter, vLLM and Qwen spell it, as one option."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from magistral_mlx.api.options import ThinkingOption
from magistral_mlx.server.request_body import RequestSchema
from magistral_mlx.server.request_translation import EFFORT_DESCRIPTION, Effort, thinking_of

Budget = Annotated[int, Field(ge=1)]
ThinkingField = Literal["on", "off"] | bool | Budget


class ThinkingBudget(RequestSchema):
    """Thinking in Anthropic's spelling."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Budget | None = None


class OpenRouterReasoning(RequestSchema):
    """Thinking in OpenRouter's spelling."""

    effort: Annotated[Effort | None, Field(description=EFFORT_DESCRIPTION)] = None
    max_tokens: Annotated[Budget | None, Field(description="Tokens of thinking at most.")] = None
    enabled: bool | None = None
    exclude: Annotated[bool | None, Field(description="Leave the thinking out.")] = None


class TemplateKwargs(RequestSchema):
    """Variables of a chat template. This model's has none; these two are taken for `thinking`."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ThinkingFields(RequestSchema):
    """The first one that is given counts, in this order."""

    thinking: Annotated[
        ThinkingField | ThinkingBudget | None,
        Field(
            description='"on", "off", or the most tokens of thinking. It overrides '
            "reasoning_effort. Not in OpenAI's API."
        ),
    ] = None
    reasoning_effort: Annotated[Effort | None, Field(description=EFFORT_DESCRIPTION)] = None
    reasoning: Annotated[
        OpenRouterReasoning | None, Field(description="Thinking as OpenRouter's API has it.")
    ] = None
    enable_thinking: Annotated[bool | None, Field(description="Another name of thinking.")] = None
    chat_template_kwargs: Annotated[
        TemplateKwargs | None, Field(description="enable_thinking is another name of thinking.")
    ] = None
    include_reasoning: Annotated[
        bool | None, Field(description="false leaves the thinking out of the answer.")
    ] = None

    @property
    def shows_thinking(self) -> bool:
        """Whether the answer holds the thinking."""
        excluded = self.reasoning is not None and self.reasoning.exclude
        return self.include_reasoning is not False and not excluded


def thinking_options(request: ThinkingFields) -> dict[str, Any]:
    """The fields of `Options` about thinking."""
    asked = _asked(request)
    return {"thinking": "on" if asked is None else asked, "ask_for_thinking": asked is not None}


def _asked(request: ThinkingFields) -> ThinkingOption | bool | None:
    match request.thinking:
        case ThinkingBudget(type="disabled"):
            return "off"
        case ThinkingBudget(budget_tokens=budget):
            return budget or "on"
        case None:
            pass
        case value:
            return value
    if request.reasoning_effort is not None:
        return thinking_of(request.reasoning_effort)
    if request.reasoning is not None:
        reasoning = request.reasoning
        if reasoning.enabled is False:
            return "off"
        if reasoning.max_tokens is not None:
            return reasoning.max_tokens
        if reasoning.effort is not None:
            return thinking_of(reasoning.effort)
        if reasoning.enabled:
            return "on"
    kwargs = request.chat_template_kwargs or TemplateKwargs()
    for value in (request.enable_thinking, kwargs.enable_thinking, kwargs.thinking):
        if value is not None:
            return value
    return None
