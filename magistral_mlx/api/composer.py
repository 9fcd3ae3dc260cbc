"""From messages and options to the frozen inputs of a request, before MLX comes in.

Whatever is wrong with a request is found here, in the caller's thread, before it queues.

The file is longer than others because each part of a request depends on the tokenizer and the
options that one object knows.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from magistral_mlx.api.history import (
    asking_for_thinking,
    turn_starts,
    with_system,
    without_earlier_thinking,
    without_oldest,
    without_thinking_in_system,
)
from magistral_mlx.api.options import DEFAULT, Options
from magistral_mlx.api.prompt_length import estimated_overflow, texts_of
from magistral_mlx.chat.messages import Message, RawPrompt, System
from magistral_mlx.chat.normalize import normalized
from magistral_mlx.chat.prompt import Prompt, encode, encode_raw
from magistral_mlx.chat.system import default_system
from magistral_mlx.errors import ContextOverflow, ImageError, InvalidOption
from magistral_mlx.events import TurnsDropped
from magistral_mlx.hub.cache import repo_of_snapshot
from magistral_mlx.runtime.generation_request import GenerationRequest

if TYPE_CHECKING:
    from magistral_mlx.chat.tokenizer import Tokenizer
    from magistral_mlx.engine.constraint import Grammar, GrammarCompiler
    from magistral_mlx.engine.sampling import Sampling
    from magistral_mlx.engine.thinking import ThinkingRules
    from magistral_mlx.engine.vocabulary import Vocabulary


class Composer:
    """Tokenizer, context and prompt format of a loaded model; safe to use from several threads."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        context: int,
        *,
        has_vision: bool,
        drafts: bool = False,
        tekken: Path | None = None,
    ) -> None:
        """`context`: tokens that prompt and answer have together. `has_vision`: it has a tower.
        `drafts`: a draft model was loaded with it. `tekken`: the file of the tokenizer."""
        self.folder = folder
        self.tokenizer = tokenizer
        self.context = context
        self._has_vision, self._drafts, self._tekken = has_vision, drafts, tekken
        self._lock = threading.Lock()

    @property
    def default_system(self) -> System | None:
        """The checkpoint's own system prompt, or the model card's."""
        # In the hub's cache a folder is named by a commit, which no prompt should call the model.
        repo = repo_of_snapshot(self.folder)
        name = repo.rpartition("/")[2] if repo else None
        thinks = self.tokenizer.has_thinking_tokens
        return default_system(self.folder, thinking=thinks, name=name, tokenizer=self._tekken)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The bytes of every token, made when first needed."""
        from magistral_mlx.engine.vocabulary import Vocabulary

        tokenizer = self.tokenizer
        ids = range(tokenizer.vocab_size)
        pieces = [tokenizer.token_bytes(id) for id in ids]
        return Vocabulary(pieces, tokenizer.special.eos, tokenizer.encode)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """Grammar compiler, built on first use, which takes a second."""
        from magistral_mlx.engine.constraint import GrammarCompiler

        return GrammarCompiler(self.vocabulary)

    def compose(self, messages: Sequence[Message], options: Options) -> GenerationRequest:
        """The inputs of a request that answers `messages`.

        Raises:
            PromptError: messages that make no prompt; ContextOverflow if they are too long.
            ImageError: an image for a model that cannot see.
            InvalidOption: an option that this model does not have.
        """
        self._check(options)
        messages = self._prepared(messages, options)
        # Whatever is dropped, the last turn stays.
        starts = turn_starts(messages) if options.overflow == "drop" else []
        self._check_length(texts_of(messages[starts[-1] :] if starts else messages))
        prompt = self._encode(messages, options)
        dropped = None
        if self._room(prompt) < self._wanted(options):
            prompt, dropped = self._make_room(messages, options, prompt)
        return self._request(prompt, options, dropped)

    def compose_raw(self, raw: RawPrompt, options: Options) -> GenerationRequest:
        """The inputs of a request that goes on where `raw` ends. Raises what `compose` raises."""
        self._check(options)
        if isinstance(raw.content, str):
            self._check_length([raw.content])
        prompt = encode_raw(raw, self.tokenizer)
        if self._room(prompt) < _least(options):
            raise self._overflow(prompt, 0)
        return self._request(prompt, options, None)

    def _request(
        self, prompt: Prompt, options: Options, dropped: TurnsDropped | None
    ) -> GenerationRequest:
        options = options.seeded()
        room = self._room(prompt)
        limit = room if options.max_tokens is None else min(options.max_tokens, room)
        special = self.tokenizer.special
        return GenerationRequest(
            prompt,
            self.tokenizer,
            self._sampling(options),
            limit,
            stop_tokens=frozenset({special.eos, *options.stop_token_ids}),
            n=options.n,
            time_limit=options.time_limit,
            answer_type=options.answer_type,
            limit_asked=options.max_tokens is not None,
            stop=tuple(options.stop),
            hidden_stops=frozenset(options.stop_token_ids) - {special.eos},
            include_stop=options.include_stop,
            minimum=options.min_tokens,
            logprobs=options.reported_logprobs,
            prompt_logprobs=options.prompt_logprobs,
            speculation=options.speculation,
            thinking=self._thinking(options, prompt),
            grammar=self._grammar(options),
            parallel_calls=options.parallel_tool_calls,
            vocabulary=self.vocabulary,
            dropped=dropped,
        )

    def prompt(self, messages: Sequence[Message], options: Options) -> Prompt:
        """The prompt for `messages`, whether it fits or not. Raises what `compose` raises."""
        return self._encode(self._prepared(messages, options), options)

    # The prompt

    def _prepared(self, messages: Sequence[Message], options: Options) -> list[Message]:
        system = self.default_system if options.system is DEFAULT else options.system
        assert system is None or isinstance(system, System)
        messages = with_system(normalized(messages), system)
        if options.thinks and options.ask_for_thinking:
            messages = asking_for_thinking(messages, self.default_system)
        if not options.thinks:
            messages = without_thinking_in_system(messages)
        if not options.keep_thinking:
            messages = without_earlier_thinking(messages)
        return messages

    def _encode(self, messages: Sequence[Message], options: Options) -> Prompt:
        prompt = encode(messages, self.tokenizer, options.offered_tools, options.image_tokens)
        if prompt.images and not self._has_vision:
            raise ImageError(
                "this model is text-only: it has no vision tower and cannot see images. Leave "
                "the image out, or use a checkpoint with vision."
            )
        return prompt

    # The context

    def _room(self, prompt: Prompt) -> int:
        return self.context - len(prompt)

    def _wanted(self, options: Options) -> int:
        """Tokens that the answer must have room for.

        One is enough to be sent as it is. Where turns are dropped, enough go to leave a quarter
        of the context, or what the answer may take: not one more before every answer.
        """
        if options.overflow == "error" or options.max_tokens == 0:
            return _least(options)
        return max(1, min(options.max_tokens or self.context, self.context // 4))

    def _make_room(
        self, messages: Sequence[Message], options: Options, prompt: Prompt
    ) -> tuple[Prompt, TurnsDropped | None]:
        """The prompt without as few of the oldest turns as possible, never without the last."""
        most = max(0, len(turn_starts(messages)) - 1)
        fewest, fitting = self._fewest_dropped(messages, options, most)
        if options.overflow == "error":
            raise self._overflow(prompt, 0 if fitting is None else fewest)
        if fitting is None:
            fewest = most
            fitting = self._encode(without_oldest(messages, most), options)
        if self._room(fitting) < _least(options):
            raise self._overflow(fitting, 0)
        if not fewest:
            return fitting, None
        left_out = len(messages) - len(without_oldest(messages, fewest))
        return fitting, TurnsDropped(fewest, left_out)

    def _fewest_dropped(
        self, messages: Sequence[Message], options: Options, most: int
    ) -> tuple[int, Prompt | None]:
        """The fewest turns without which there is room, found by halving, and the prompt then."""
        wanted = self._wanted(options)
        low, high, fitting = 1, most, None
        while low <= high:
            middle = (low + high) // 2
            prompt = self._encode(without_oldest(messages, middle), options)
            if self._room(prompt) >= wanted:
                high, fitting = middle - 1, prompt
            else:
                low = middle + 1
        return low, fitting

    def _check_length(self, texts: Iterable[str]) -> None:
        """Refuse what is far too long without tokenizing all of it. Raises ContextOverflow."""
        about = estimated_overflow(texts, self.context, self.tokenizer)
        if about is not None:
            raise ContextOverflow(
                f"the prompt has about {about:,} tokens, and the context holds {self.context:,} "
                "with the answer. Shorten it, or load the model with a larger context.",
                about,
                self.context,
            )

    def _overflow(self, prompt: Prompt, drop_turns: int) -> ContextOverflow:
        oldest = "oldest turn" if drop_turns == 1 else f"oldest {drop_turns} turns"
        advice = (
            f'Leave out the {oldest} (overflow="drop" does so), or shorten what was said.'
            if drop_turns
            else "Shorten it, send fewer or smaller images (image_tokens caps them), or load the "
            "model with a larger context."
        )
        return ContextOverflow(
            f"the prompt has {len(prompt):,} tokens, and the context holds {self.context:,} with "
            f"the answer. {advice}",
            len(prompt),
            self.context,
            drop_turns,
        )

    # The engine's rules

    def _check(self, options: Options) -> None:
        tokenizer = self.tokenizer
        if options.min_thinking and not tokenizer.has_thinking_tokens:
            raise InvalidOption("min_thinking needs a model that thinks; this one does not.")
        if options.speculation == "draft" and not self._drafts:
            raise InvalidOption(
                "speculation is 'draft', but no draft model was loaded. Load the model with "
                "draft=NAME (--draft NAME), or leave speculation at 'auto'."
            )
        for name in ("logit_bias", "stop_token_ids"):
            for id in getattr(options, name):
                if not 0 <= id < tokenizer.vocab_size:
                    raise InvalidOption(
                        f"{name} holds {id}, but this model's tokens go from 0 to "
                        f"{tokenizer.vocab_size - 1}."
                    )

    def _thinking(self, options: Options, prompt: Prompt) -> ThinkingRules | None:
        special = self.tokenizer.special
        if special.think is None or special.end_think is None:
            return None
        from magistral_mlx.engine.thinking import CLOSING_PHRASE, ThinkingRules

        return ThinkingRules(
            open=special.think,
            close=special.end_think,
            exits=special.thinking_marks.exits,
            enabled=options.thinks,
            inside=prompt.inside_thinking,
            budget=options.budget,
            minimum=options.min_thinking,
            closing=tuple(self.tokenizer.encode(CLOSING_PHRASE)),
        )

    def _sampling(self, options: Options) -> Sampling:
        sampling = options.sampling(0)
        if options.ignore_eos:
            banned = {self.tokenizer.special.eos: -math.inf}
            sampling = replace(sampling, logit_bias={**sampling.logit_bias, **banned})
        if sampling.dry is None or sampling.dry.breakers is not None:
            return sampling
        return replace(sampling, dry=replace(sampling.dry, breakers=self._breakers))

    @cached_property
    def _breakers(self) -> frozenset[int]:
        from magistral_mlx.engine.dry import DEFAULT_BREAKERS, breaker_tokens

        return breaker_tokens(DEFAULT_BREAKERS, self.vocabulary)

    def _grammar(self, options: Options) -> Grammar | None:
        if not options.constrained:
            return None
        with self._lock:  # building the compiler takes a second, once
            compiler = self.grammars
        if options.schema is not None and not (options.offered_tools and self._calls):
            return compiler.json_schema(options.schema)
        if options.regex is not None:
            return compiler.regex(options.regex)
        if options.choice is not None:
            return compiler.choice(options.choice)
        if options.grammar is not None:
            return compiler.grammar(options.grammar)
        return self._call_grammar(compiler, options)

    def _call_grammar(self, compiler: GrammarCompiler, options: Options) -> Grammar | None:
        special = self.tokenizer.special
        if special.tool_calls is None or special.args is None:
            if options.strict_tools or options.tool_choice == "required":
                raise InvalidOption(
                    "this model's tokenizer (older than version 11) does not mark a call's name "
                    "and arguments, so calls can neither be required nor held to a schema: leave "
                    "out strict_tools, tool_choice='required' and the choice of one tool."
                )
            return None  # surplus calls are dropped
        return compiler.tool_calls(
            {tool.name: tool.parameters for tool in options.offered_tools},
            call=special.tool_calls,
            args=special.args,
            required=options.tool_choice == "required",
            parallel=options.parallel_tool_calls,
            answer=options.schema,
            strict=options.strict_tool_names,
            texts={tool.name: tool.text_grammar for tool in options.offered_tools},
        )

    @property
    def _calls(self) -> bool:
        """Whether calls can be told from text while they are written."""
        special = self.tokenizer.special
        return special.tool_calls is not None and special.args is not None


def _least(options: Options) -> int:
    """Tokens that the shortest answer takes: none where only the prompt is to be judged."""
    return 0 if options.max_tokens == 0 else 1
