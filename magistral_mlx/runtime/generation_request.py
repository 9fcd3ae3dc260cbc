"""Frozen inputs of a request: all that is settled before it queues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydantic import BaseModel

    from magistral_mlx.chat.prompt import Prompt
    from magistral_mlx.chat.tokenizer import Tokenizer
    from magistral_mlx.engine.constraint import Grammar
    from magistral_mlx.engine.sampling import Sampling
    from magistral_mlx.engine.thinking import ThinkingRules
    from magistral_mlx.engine.vocabulary import Vocabulary
    from magistral_mlx.events import TurnsDropped
    from magistral_mlx.model.adapters import Adapter

SEEDS = 2**32
SpeculationOption = Literal["auto", "off", "ngram", "draft"]


def nth_seed(seed: int, index: int = 0) -> int:
    """The seed of sample `index`; any integer will do."""
    return (seed + index) % SEEDS


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """Frozen inputs of a request.

    tokenizer: made the prompt, and reads the answer. sampling: of the first sample; each later one
    draws with the next seed. n: samples. limit: tokens that each produces at most; limit_asked:
    whether the caller asked for that number. time_limit: seconds from its start, for all samples.
    stop_tokens: ids that end a sample; hidden_stops: those of them that do not count as the model's
    own end. stop: texts that end it; include_stop: whether what ended it is a part of it.
    minimum: tokens before which no stop token may come.
    logprobs: None for none, k to report the k likeliest tokens beside each one.
    prompt_logprobs: the same of the prompt's tokens.
    parallel_calls: whether an answer may have more calls than one; surplus ones are dropped.
    speculation: where guesses come from. dropped: turns that did not fit into the context.
    answer_type: pydantic class whose JSON each answer is. adapter: None for the base alone.
    """

    prompt: Prompt
    tokenizer: Tokenizer
    sampling: Sampling
    limit: int
    stop_tokens: frozenset[int]
    n: int = 1
    limit_asked: bool = False
    time_limit: float | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    minimum: int = 0
    hidden_stops: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    speculation: SpeculationOption = "auto"
    thinking: ThinkingRules | None = None
    grammar: Grammar | None = None
    parallel_calls: bool = True
    vocabulary: Vocabulary | None = None
    dropped: TurnsDropped | None = None
    answer_type: type[BaseModel] | None = None
    adapter: Adapter | None = None

    @property
    def adapter_key(self) -> int:
        """Fingerprint of its adapter; 0 for none."""
        return 0 if self.adapter is None else self.adapter.fingerprint
