"""How one answer is generated: every option that `generate`, `stream` and a chat take.

The file is longer than others because it declares every option, with its range and its help.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from magistral_mlx.api.option_kinds import (
    DEFAULT,
    Default,
    DrySettings,
    JSONSchema,
    LogitBias,
    SystemPrompt,
    ThinkingMode,
    TokenIds,
    Tools,
)
from magistral_mlx.errors import InvalidOption
from magistral_mlx.option_spec import (
    Choice,
    Flag,
    Integer,
    Kind,
    Number,
    Texts,
    option,
    validate_options,
    with_changes,
)
from magistral_mlx.runtime.generation_request import SEEDS, SpeculationOption, nth_seed

if TYPE_CHECKING:
    from pydantic import BaseModel

    from magistral_mlx.api.inputs import ToolLike
    from magistral_mlx.chat.messages import System, Tool
    from magistral_mlx.engine.dry import Dry
    from magistral_mlx.engine.sampling import Sampling

__all__ = ["DEFAULT", "Default", "Options", "SpeculationOption", "nth_seed"]

ThinkingOption = Literal["on", "off"] | int
Overflow = Literal["error", "drop"]
ToolChoice = Literal["auto", "required", "none"]

_MOST_TOP_LOGPROBS = 20  # as in OpenAI's API
_LEAST_IMAGE_TOKENS = 2  # one merged patch and the end of the image
_LENGTH, _SAMPLING, _THINKING = "Length", "Sampling", "Thinking"
_STRUCTURE, _PROMPT, _SPEED, _OUTPUT = "Structure", "Prompt", "Speed", "Output"


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one answer is generated. The defaults are the model card's.

    `docs/options.md` lists every option with its range, its default and what it does.
    """

    max_tokens: int | None = option(
        None,
        Integer(0),
        "Tokens to generate at most, thinking included; 0 with prompt_logprobs only.",
        unset="what the context leaves",
        section=_LENGTH,
    )
    stop: str | Sequence[str] = option(
        (),
        Texts(single=True),
        "Text that ends the answer and is not part of it; it counts in the answer alone.",
        section=_LENGTH,
    )
    stop_token_ids: Iterable[int] = option(
        (), TokenIds(), "Tokens that end the generation.", section=_LENGTH
    )
    include_stop: bool = option(
        False,
        Flag(),
        "Keep the stop text or token that ended the answer as its end.",
        section=_LENGTH,
    )
    min_tokens: int = option(
        0,
        Integer(0),
        "Tokens, thinking included, before which no stop token may come.",
        section=_LENGTH,
    )
    ignore_eos: bool = option(
        False,
        Flag(),
        "Never end the turn: the answer goes on to its limit, or to a stop text or token.",
        section=_LENGTH,
    )
    n: int = option(
        1, Integer(1), "Answers to one prompt, with the seeds seed, seed + 1, …", section=_LENGTH
    )
    time_limit: float | None = option(
        None,
        Number(above=0),
        "Seconds that an answer may take once its turn has come; it then ends as it is.",
        unset="none",
        section=_LENGTH,
    )
    temperature: float = option(
        0.7, Number(0, meanings={0: "greedy"}), "Sampling temperature.", section=_SAMPLING
    )
    top_p: float = option(
        0.95,
        Number(above=0, most=1),
        "Draw among the likeliest tokens that have this probability together.",
        section=_SAMPLING,
    )
    top_k: int = option(
        0, Integer(0, meanings={0: "off"}), "Draw among the k likeliest tokens.", section=_SAMPLING
    )
    min_p: float = option(
        0.0,
        Number(0, 1, meanings={0: "off"}),
        "Drop tokens less likely than this share of the likeliest.",
        section=_SAMPLING,
    )
    repetition_penalty: float = option(
        1.0,
        Number(above=0, meanings={1: "off"}),
        "Divisor of the logits of recent tokens.",
        section=_SAMPLING,
    )
    repetition_window: int | None = option(
        64,
        Integer(1),
        "Recent tokens of prompt and answer that the repetition penalty counts.",
        unset="all",
        section=_SAMPLING,
    )
    presence_penalty: float = option(
        0.0,
        Number(-2, 2, meanings={0: "off"}),
        "Subtracted from the logits of generated tokens, once.",
        section=_SAMPLING,
    )
    frequency_penalty: float = option(
        0.0,
        Number(-2, 2, meanings={0: "off"}),
        "Subtracted from the logits of generated tokens, for each occurrence.",
        section=_SAMPLING,
    )
    logit_bias: Mapping[int, float] = option(
        None, LogitBias(), "Token ids, and what is added to their logits.", section=_SAMPLING
    )
    dry: bool | Dry = option(
        False, DrySettings(), "Penalize repeated sequences as they begin (DRY).", section=_SAMPLING
    )
    seed: int | None = option(
        None,
        Integer(0, SEEDS - 1),
        "Seed of the sampling: the same one gives the same answer.",
        unset="a random one, which the result holds",
        section=_SAMPLING,
    )
    thinking: ThinkingOption = option(
        "on",
        ThinkingMode(),
        "Think first, answer at once, or think for so many tokens at most.",
        section=_THINKING,
    )
    ask_for_thinking: bool = option(
        False,
        Flag(),
        "Put the checkpoint's request to think before a system prompt that has none.",
        section=_THINKING,
    )
    min_thinking: int = option(
        0, Integer(0), "Tokens before which a trace is not closed.", section=_THINKING
    )
    keep_thinking: bool = option(
        True,
        Flag(),
        "Keep the thinking of earlier turns in the prompt, as the model was trained.",
        section=_THINKING,
    )
    json_schema: Mapping[str, Any] | str | bool | type[BaseModel] | None = option(
        None,
        JSONSchema(),
        "JSON schema that the answer follows; a pydantic class, to get an instance as `parsed`.",
        section=_STRUCTURE,
    )
    regex: str | None = option(
        None, Kind(), "Regular expression that the answer matches.", section=_STRUCTURE
    )
    choice: Sequence[str] | None = option(
        None, Texts(1), "Texts of which the answer is one.", section=_STRUCTURE
    )
    grammar: str | None = option(
        None,
        Kind(),
        "Grammar that the answer follows, in llama.cpp's GBNF or as llguidance takes Lark.",
        section=_STRUCTURE,
    )
    tools: Iterable[ToolLike] | None = option(
        None,
        Tools(),
        "Functions that the model may call: Python functions, or as in OpenAI's API.",
        section=_STRUCTURE,
    )
    tool_choice: ToolChoice = option(
        "auto",
        Choice("auto", "required", "none"),
        "Let the model call tools, make it call one at least, or hide them.",
        section=_STRUCTURE,
    )
    strict_tools: bool = option(
        False,
        Flag(),
        "Hold calls of all tools to their schemas exactly, as a tool's own `strict` does.",
        section=_STRUCTURE,
    )
    parallel_tool_calls: bool = option(
        True, Flag(), "Allow more than one call in an answer.", section=_STRUCTURE
    )
    system: System | str | Default | None = option(
        DEFAULT,
        SystemPrompt(),
        "System prompt where the messages hold none, taken literally.",
        unset="none",
        section=_PROMPT,
    )
    overflow: Overflow = option(
        "error",
        Choice("error", "drop"),
        "Fail when a conversation outgrows its context, or drop its oldest turns.",
        section=_PROMPT,
    )
    image_tokens: int | None = option(
        None,
        Integer(_LEAST_IMAGE_TOKENS),
        "Tokens of an image at most; larger ones are scaled down.",
        unset="what the model allows",
        section=_PROMPT,
    )
    adapter: str | None = option(
        None,
        Kind(),
        'Loaded adapter that changes the answer, by its name; "base" is none.',
        unset="the one that the model was loaded with",
        section=_PROMPT,
    )
    speculation: SpeculationOption = option(
        "auto",
        Choice("auto", "off", "ngram", "draft"),
        "Guess tokens from the text or by a draft model, and check several in one pass, where "
        "that is faster. No answer changes.",
        section=_SPEED,
    )
    logprobs: bool = option(False, Flag(), "Report each token's log probability.", section=_OUTPUT)
    top_logprobs: int = option(
        0,
        Integer(0, _MOST_TOP_LOGPROBS),
        "Likeliest tokens to report in each token's place.",
        section=_OUTPUT,
    )
    prompt_logprobs: int | None = option(
        None,
        Integer(0, _MOST_TOP_LOGPROBS),
        "Report the log probability of each token of the prompt, and so many of the likeliest "
        "in its place. All of the prompt is computed for that, whatever is cached.",
        unset="none",
        section=_OUTPUT,
    )

    def __post_init__(self) -> None:
        """Check the values, and bring them into their normal form.

        Raises:
            InvalidOption: a value out of range, or two that exclude each other.
            PromptError: a tool that is none.
        """
        validate_options(self)
        if self.logit_bias is None:
            object.__setattr__(self, "logit_bias", {})
        if self.tools is None:
            object.__setattr__(self, "tools", ())
        self._check_thinking()
        self._check_structure()
        self._check_length()

    @classmethod
    def of(cls, base: Options | None, changes: Mapping[str, Any]) -> Options:
        """`base` (or the defaults) with `changes`.

        Raises:
            InvalidOption: an option that is unknown, with the nearest known one, or out of range.
        """
        return with_changes(cls, base, changes)

    @property
    def thinks(self) -> bool:
        """Whether there may be a trace."""
        return self.thinking != "off"

    @property
    def budget(self) -> int | None:
        """The most tokens of a trace; None for no limit."""
        return self.thinking if isinstance(self.thinking, int) else None

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the prompt tells the model of."""
        return () if self.tool_choice == "none" else self.tools  # type: ignore[return-value]

    @property
    def answer_type(self) -> type[BaseModel] | None:
        """The pydantic class that the answer is an instance of, if any."""
        return self.json_schema if isinstance(self.json_schema, type) else None

    @property
    def schema(self) -> Mapping[str, Any] | str | bool | None:
        """`json_schema` as a JSON schema.

        Raises:
            InvalidOption: a pydantic class that has none.
        """
        schema = self.json_schema
        return _schema_of(schema) if isinstance(schema, type) else schema

    @property
    def constrained(self) -> bool:
        """Whether a grammar holds for the answer."""
        return bool(self._answer_forms) or self.constrains_calls

    @property
    def constrains_calls(self) -> bool:
        """Whether calls to tools are held to a grammar."""
        held = not self.parallel_tool_calls or self.tool_choice == "required"
        return bool(self.offered_tools) and (held or bool(self.strict_tool_names))

    @property
    def strict_tool_names(self) -> frozenset[str]:
        """Names of the offered tools whose calls are held to their schema or grammar exactly."""
        return frozenset(
            tool.name
            for tool in self.offered_tools
            if tool.strict or tool.text_grammar or self.strict_tools
        )

    @property
    def reported_logprobs(self) -> int | None:
        """None for none, else how many likeliest tokens are reported beside the chosen one."""
        return self.top_logprobs if self.logprobs or self.top_logprobs else None

    def seeded(self) -> Options:
        """With a seed in any case."""
        import secrets

        return self if self.seed is not None else replace(self, seed=secrets.randbelow(SEEDS))

    def sampling(self, index: int) -> Sampling:
        """How the tokens of answer `index` are drawn."""
        from magistral_mlx.engine.dry import Dry
        from magistral_mlx.engine.sampling import Sampling

        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=nth_seed(self.seed or 0, index),
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            repetition_window=self.repetition_window,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            dry=Dry() if self.dry is True else self.dry or None,
        )

    @property
    def _answer_forms(self) -> list[str]:
        """Names of the given options that hold the answer to a form."""
        names = ("json_schema", "regex", "choice", "grammar")
        return [name for name in names if getattr(self, name) is not None]

    def _check_length(self) -> None:
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise InvalidOption(
                "max_tokens is 0; it must be 1 or more, unless prompt_logprobs are asked for."
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidOption(
                f"min_tokens is {self.min_tokens}, more than the {self.max_tokens} of max_tokens."
            )
        for name in ("min_tokens", "ignore_eos"):
            if getattr(self, name) and self.constrained:
                form = [*self._answer_forms, "tools whose calls are held to a form"][0]
                raise InvalidOption(
                    f"{name} and {form} exclude each other: where the form ends, the answer ends."
                )

    def _check_thinking(self) -> None:
        if isinstance(self.thinking, int) and self.min_thinking > self.thinking:
            raise InvalidOption(
                f"min_thinking is {self.min_thinking}, more than the {self.thinking} tokens "
                "that thinking allows."
            )
        if self.min_thinking and not self.thinks:
            raise InvalidOption("min_thinking needs thinking, which is off.")

    def _check_structure(self) -> None:
        if self.tool_choice == "required" and not self.tools:
            raise InvalidOption("tool_choice is 'required', but there are no tools.")
        given = self._answer_forms
        if len(given) > 1:
            raise InvalidOption(f"{' and '.join(given)} exclude each other: give one.")
        if given and self.tool_choice == "required":
            raise InvalidOption(f"{given[0]} and tool_choice='required' exclude each other.")
        if given and given != ["json_schema"] and self.offered_tools:
            raise InvalidOption(
                f"{given[0]} and tools exclude each other: no call could be written. "
                "tool_choice='none' hides the tools."
            )


def _schema_of(answer: type[BaseModel]) -> Mapping[str, Any]:
    from pydantic.errors import PydanticUserError

    from magistral_mlx.api.functions import first_line

    try:
        return answer.model_json_schema()
    except (PydanticUserError, AttributeError, NameError, TypeError) as error:
        raise InvalidOption(
            f"json_schema is {answer.__name__}, a class without a JSON schema: {first_line(error)}."
            " Give each field a type that JSON has."
        ) from error
