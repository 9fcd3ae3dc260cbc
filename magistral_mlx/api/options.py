"""How one answer is generated: every option that `generate`, `stream` and a chat take."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from magistral_mlx.chat.image_tokens import FEWEST
from magistral_mlx.chat.messages import System, Tool
from magistral_mlx.errors import InvalidOption

if TYPE_CHECKING:
    from magistral_mlx.api.inputs import ToolLike
    from magistral_mlx.engine.dry import Dry
    from magistral_mlx.engine.sampling import Sampling

ThinkingOption = Literal["on", "off"] | int
Overflow = Literal["error", "drop"]
ToolChoice = Literal["auto", "required", "none"]
SpeculationOption = Literal["auto", "off", "ngram", "draft"]


class Default:
    """The system prompt that the checkpoint brings; there is one of it, `DEFAULT`."""

    def __repr__(self) -> str:
        return "DEFAULT"

    def __copy__(self) -> Default:
        return self

    def __deepcopy__(self, memo: object) -> Default:
        return self


DEFAULT = Default()
"""The checkpoint's own system prompt, as the value of `system`."""
_LARGEST_SEED = 2**32 - 1
_MOST_TOP_LOGPROBS = 20  # as in OpenAI's API
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How one answer is generated. The defaults are the model card's.

    Length:
        max_tokens: tokens to produce at most, thinking included; None fills the context.
        stop: texts that end the answer and are not part of it. They count in the answer alone.
        stop_token_ids: tokens that end the generation.
    Sampling:
        temperature: 0 is greedy.
        top_p, top_k, min_p: which tokens may be drawn at all; top_k 0 and min_p 0 are off.
        repetition_penalty: divides the logits of tokens seen among the last
            `repetition_window` ones (None: all); 1 is off.
        presence_penalty, frequency_penalty: subtracted from the logits of generated tokens, once
            and for each occurrence; 0 is off.
        logit_bias: token id -> what is added to its logit.
        dry: prevent repetitions as they begin; True takes the usual settings.
        seed: the same one gives the same tokens; None draws one, which the result tells.
        n: answers to one prompt, with the seeds seed, seed + 1, …
    Thinking:
        thinking: "on"; "off" for no trace and a system prompt that asks for none; or the most
            tokens a trace may have, after which it is closed and the answer follows.
        ask_for_thinking: put the checkpoint's own request to think before a system prompt that has
            none. Without it the model may not think where a system prompt is given.
        min_thinking: tokens below which a trace is not closed.
        keep_thinking: False leaves the thinking of earlier turns out of the prompt. It saves
            context, and departs from how the model was trained.
    Structure:
        json_schema, regex, choice: what the answer after the thinking must be; one of them. With
            tools, the model may call them instead of answering to a json_schema.
        tools: functions that the model may call, as Tools or as in OpenAI's API.
        tool_choice: "auto"; "required" for at least one call; "none" hides the tools.
        strict_tools: hold calls to the tools' names and argument schemas while they are written.
        parallel_tool_calls: False for one call at most.
    Prompt:
        system: the system prompt where the messages hold none. DEFAULT is the checkpoint's own,
            None or "" sends none, a string is literal.
        overflow: what happens when a conversation outgrows its context: "error", or "drop" the
            oldest turns and tell so.
        image_tokens: the most tokens an image may take; larger ones are scaled down.
    Speed:
        speculation: guess tokens and check several in one pass, with the same answer: "ngram"
            guesses from what has been written, "draft" from the draft model that was loaded,
            "auto" from what there is. All of them only while it pays; "off" never.
    Figures:
        logprobs: report each token's log probability; top_logprobs: and that many likeliest ones.
    """

    max_tokens: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Iterable[int] = ()
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int | None = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    dry: bool | Dry = False
    seed: int | None = None
    n: int = 1
    thinking: ThinkingOption = "on"
    ask_for_thinking: bool = False
    min_thinking: int = 0
    keep_thinking: bool = True
    json_schema: Mapping[str, Any] | str | bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    tools: Iterable[ToolLike] | None = None
    tool_choice: ToolChoice = "auto"
    strict_tools: bool = False
    parallel_tool_calls: bool = True
    system: System | str | Default | None = DEFAULT
    overflow: Overflow = "error"
    image_tokens: int | None = None
    speculation: SpeculationOption = "auto"
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        """Bring the values into one form.

        Raises:
            InvalidOption: an option outside what it may be.
            PromptError: a tool that is none.
        """
        from magistral_mlx.api.inputs import to_tools

        stop = (self.stop,) if isinstance(self.stop, str) else _several("stop", self.stop)
        self._set("stop", stop)
        ids = _several("stop_token_ids", self.stop_token_ids)
        self._set("stop_token_ids", frozenset(ids))
        self._set("logit_bias", _bias(self.logit_bias))
        self._set(
            "tools", to_tools(self.tools if self.tools is None else _several("tools", self.tools))
        )
        if self.choice is not None:
            self._set("choice", _several("choice", self.choice))
            if not all(isinstance(text, str) for text in self.choice):
                raise InvalidOption("choice holds something that is not text.")
        if isinstance(self.thinking, bool):
            self._set("thinking", "on" if self.thinking else "off")
        if isinstance(self.system, str):
            self._set("system", System(self.system) if self.system else None)
        self._check_numbers()
        self._check_lengths()
        self._check_choices()
        self.sampling(0)

    @classmethod
    def of(cls, base: Options | None, changes: Mapping[str, Any]) -> Options:
        """`base` (or the defaults) with `changes`.

        Raises:
            InvalidOption: an option that is unknown, with the nearest known one, or out of range.
        """
        known = [field.name for field in fields(cls)]
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
                raise InvalidOption(f"there is no option {name}: {hint}")
        if base is not None and not isinstance(base, Options):
            raise InvalidOption(f"options must be Options, not {type(base).__name__}.")
        return replace(base or cls(), **changes) if changes else base or cls()

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
    def constrained(self) -> bool:
        """Whether a grammar holds for the answer."""
        answer = (self.json_schema, self.regex, self.choice)
        return any(value is not None for value in answer) or self.constrains_calls

    @property
    def constrains_calls(self) -> bool:
        """Whether calls to tools are held to a grammar."""
        held = self.strict_tools or not self.parallel_tool_calls or self.tool_choice == "required"
        return held and bool(self.offered_tools)

    @property
    def reported_logprobs(self) -> int | None:
        """None for none, else how many likeliest tokens are told beside the chosen one."""
        return self.top_logprobs if self.logprobs or self.top_logprobs else None

    def seeded(self) -> Options:
        """With a seed in any case."""
        if self.seed is not None:
            return self
        return replace(self, seed=secrets.randbelow(_LARGEST_SEED + 1))

    def sampling(self, index: int) -> Sampling:
        """How the tokens of answer `index` are drawn.

        Raises:
            InvalidOption: a value out of range.
        """
        from magistral_mlx.engine.dry import Dry
        from magistral_mlx.engine.sampling import Sampling

        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=((self.seed or 0) + index) % (_LARGEST_SEED + 1) if index else self.seed or 0,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            repetition_window=self.repetition_window,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            dry=Dry() if self.dry is True else self.dry or None,
        )

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise InvalidOption(f"{name} is {value!r}; it must be a number.")
        for name in ("top_k", "seed", "repetition_window"):
            _at_least(name, getattr(self, name), 0)

    def _check_lengths(self) -> None:
        _at_least("max_tokens", self.max_tokens, 1)
        _at_least("n", self.n, 1)
        _at_least("min_thinking", self.min_thinking, 0)
        _at_least("image_tokens", self.image_tokens, FEWEST)
        _at_least("top_logprobs", self.top_logprobs, 0)
        if self.top_logprobs > _MOST_TOP_LOGPROBS:
            raise InvalidOption(
                f"top_logprobs is {self.top_logprobs}; it must be at most {_MOST_TOP_LOGPROBS}."
            )
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InvalidOption("stop holds something that is not text, or is empty.")
        if not all(type(id) is int for id in self.stop_token_ids):
            raise InvalidOption("stop_token_ids must be whole numbers.")

    def _check_choices(self) -> None:
        from magistral_mlx.engine.dry import Dry

        if isinstance(self.thinking, int):
            _at_least("thinking", self.thinking, 1, ' (or "on" or "off")')
            if self.min_thinking > self.thinking:
                raise InvalidOption(
                    f"min_thinking is {self.min_thinking}, more than the {self.thinking} tokens "
                    "that thinking allows."
                )
        else:
            _one_of("thinking", self.thinking, ("on", "off"), " or a number of tokens")
        if self.min_thinking and not self.thinks:
            raise InvalidOption("min_thinking needs thinking, which is off.")
        _one_of("overflow", self.overflow, ("error", "drop"))
        _one_of("speculation", self.speculation, ("auto", "off", "ngram", "draft"))
        _one_of("tool_choice", self.tool_choice, ("auto", "required", "none"))
        if self.tool_choice == "required" and not self.tools:
            raise InvalidOption("tool_choice is 'required', but there are no tools.")
        given = [n for n in ("json_schema", "regex", "choice") if getattr(self, n) is not None]
        if len(given) > 1:
            raise InvalidOption(f"{' and '.join(given)} exclude each other: give one.")
        if given and self.tool_choice == "required":
            raise InvalidOption(f"{given[0]} and tool_choice='required' exclude each other.")
        if given and given != ["json_schema"] and self.offered_tools:
            raise InvalidOption(
                f"{given[0]} and tools exclude each other: no call could be written. "
                "tool_choice='none' hides the tools."
            )
        if not (self.dry is None or isinstance(self.dry, bool | Dry)):
            raise InvalidOption(f"dry is {self.dry!r}; it must be True, False or a Dry.")
        if not isinstance(self.system, System | Default | None):
            raise InvalidOption(
                f"system must be text, a System or None, not {type(self.system).__name__}."
            )


def _several(name: str, values: object) -> tuple[Any, ...]:
    """The values as a tuple.

    Raises:
        InvalidOption: one value, or a text, where a list is expected.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidOption(f"{name} is {values!r}; it must be a list.")
    return tuple(values)


def _at_least(name: str, value: int | None, least: int, more: str = "") -> None:
    if value is None:
        return
    if type(value) is not int:
        raise InvalidOption(f"{name} is {value!r}; it must be a whole number{more}.")
    if value < least:
        raise InvalidOption(f"{name} is {value}; it must be {least} or more{more}.")


def _one_of(name: str, value: object, allowed: tuple[str, ...], more: str = "") -> None:
    if value not in allowed:
        choices = " or ".join(map(repr, allowed)) if len(allowed) == 2 else ", ".join(allowed)
        raise InvalidOption(f"{name} is {value!r}; it must be {choices}{more}.")


def _bias(given: Mapping[Any, Any]) -> dict[int, float]:
    """Ids may come as text, as they do out of JSON."""
    try:
        return {int(id): float(bias) for id, bias in given.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidOption(f"logit_bias must map token ids to numbers: {error}.") from error
