"""The Python API: load a checkpoint, ask it, read events.

with Magistral.load("demo") as magistral:
    for event in magistral.stream([User("What is 37 + 85?")]):
        ...
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event as Flag

from magistral_mlx.backend import DTYPES, mx
from magistral_mlx.chat.messages import Message, System, Tool
from magistral_mlx.chat.parser import Parser
from magistral_mlx.chat.prompt import Prompt, encode
from magistral_mlx.chat.system import default_system
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import OnProgress, load_model, load_vision
from magistral_mlx.engine.generate import Request, generate
from magistral_mlx.engine.sampling import LARGEST_SEED, Sampling
from magistral_mlx.errors import ContextOverflow, InvalidOption, PictureError, TokenizerError
from magistral_mlx.events import (
    Event,
    Finished,
    FinishReason,
    Prefill,
    Stats,
    Text,
    Thinking,
    ToolCall,
)
from magistral_mlx.model.magistral import MagistralModel


@dataclass(frozen=True)
class Options:
    """How one answer is generated.

    max_tokens None fills the rest of the context. seed None draws one. temperature 0 is greedy.
    """

    max_tokens: int | None = None
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidOption for a value out of range."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidOption(f"max_tokens is {self.max_tokens}; it must be 1 or more.")
        self.sampling()

    def sampling(self) -> Sampling:
        """How tokens are drawn, with a seed in any case."""
        seed = secrets.randbelow(LARGEST_SEED) if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_p, seed)


@dataclass(frozen=True)
class Result:
    """A whole answer."""

    thinking: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    stats: Stats


class Magistral:
    """A loaded model with its tokenizer. Make one with `Magistral.load`; close it when done."""

    def __init__(self, checkpoint: Checkpoint, model: MagistralModel, tokenizer: Tokenizer) -> None:
        self._checkpoint = checkpoint
        self._model: MagistralModel | None = model
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        name_or_dir: str | Path | None = None,
        *,
        dtype: str | None = None,
        tokenizer: str | Path | None = None,
        on_progress: OnProgress | None = None,
    ) -> Magistral:
        """Load a model: a folder, a hub name, "demo", or None for the one that is on this machine.

        The decoder is loaded now, the vision tower with the first picture.

        Args:
            dtype: "float32", "float16" or "bfloat16"; None is the backend's own choice.
            tokenizer: a tekken.json, or a folder or hub name that has one, where the checkpoint
                lacks it.
            on_progress: called with the bytes loaded so far and in all.

        Raises:
            MagistralError: no such model, or one that is damaged or of another architecture.
        """
        from magistral_mlx.hub import find_tokenizer
        from magistral_mlx.library import locate

        if dtype is not None and dtype not in DTYPES:
            raise InvalidOption(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
        folder = locate(None if name_or_dir is None else str(name_or_dir))
        checkpoint = Checkpoint.open(folder)
        vocabulary = Tokenizer.load(
            find_tokenizer(folder, None if tokenizer is None else str(tokenizer))
        )
        if vocabulary.vocab_size > checkpoint.config.text.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {vocabulary.vocab_size:,} tokens, but the model in {folder} "
                f"only {checkpoint.config.text.vocab_size:,}. Name its own one as the tokenizer."
            )
        model = load_model(checkpoint, DTYPES[dtype] if dtype else None, on_progress)
        return cls(checkpoint, model, vocabulary)

    @property
    def folder(self) -> Path:
        """Where the checkpoint lies."""
        return self._checkpoint.folder

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._checkpoint.config.text.max_position_embeddings

    @property
    def default_system(self) -> System | None:
        """The checkpoint's own system prompt, or the model card's."""
        return default_system(self.folder, thinks=self.tokenizer.thinks)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> Prompt:
        """The prompt that `stream` feeds the model.

        Raises:
            PromptError: messages that make no prompt.
            PictureError: a picture for a model that cannot see.
        """
        prompt = encode(messages, self.tokenizer, tools)
        if prompt.pictures and self._checkpoint.config.vision is None:
            raise PictureError(
                f"the model in {self.folder} is text-only: it has no vision tower and cannot see "
                "pictures. Leave the picture out, or use a checkpoint with vision."
            )
        return prompt

    def stream(
        self,
        messages: Sequence[Message],
        options: Options | None = None,
        tools: Sequence[Tool] | None = None,
    ) -> Stream:
        """Answer `messages`, event by event.

        The vision tower is loaded here if a picture is the first one.

        Raises:
            PromptError: messages that make no prompt; ContextOverflow one that is too long.
            PictureError: a picture for a model that cannot see.
            InvalidOption: an option out of range.
        """
        options = options or Options()
        model = self._open_model()
        prompt = self.prompt(messages, tools)
        request = Request(
            prompt.tokens, prompt.pictures, options.sampling(), self._limit(options, len(prompt))
        )
        if prompt.pictures and not model.sees:
            load_vision(model, self._checkpoint)
        return Stream(model, request, self.tokenizer)

    def generate(
        self,
        messages: Sequence[Message],
        options: Options | None = None,
        tools: Sequence[Tool] | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Result:
        """Answer `messages` and wait for the whole answer. Raises what `stream` raises."""
        pieces: dict[type, list[str]] = {Thinking: [], Text: []}
        calls: list[ToolCall] = []
        for event in self.stream(messages, options, tools):
            if on_event:
                on_event(event)
            match event:
                case Thinking(text) | Text(text):
                    pieces[type(event)].append(text)
                case ToolCall():
                    calls.append(event)
                case Finished(reason, stats):
                    finished = (reason, stats)
        thinking, text = "".join(pieces[Thinking]), "".join(pieces[Text])
        return Result(thinking, text, tuple(calls), *finished)

    def close(self) -> None:
        """Give the memory back. The model cannot be asked afterwards."""
        self._model = None
        mx.clear_cache()

    def __enter__(self) -> Magistral:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open_model(self) -> MagistralModel:
        if self._model is None:
            raise InvalidOption("this model has been closed. Load it again to ask it.")
        return self._model

    def _limit(self, options: Options, prompt_tokens: int) -> int:
        room = self.context - prompt_tokens
        if room < 1:
            raise ContextOverflow(
                f"the prompt has {prompt_tokens:,} tokens, and the context holds "
                f"{self.context:,} with the answer. Shorten the prompt or send fewer or smaller "
                "pictures."
            )
        if options.max_tokens is None:
            return room
        return min(options.max_tokens, room)


class Stream(Iterator[Event]):
    """The events of one answer; iterate it once. The last one is `Finished`."""

    def __init__(self, model: MagistralModel, request: Request, tokenizer: Tokenizer) -> None:
        self._cancelled = Flag()
        self._events = self._run(model, request, tokenizer)

    def cancel(self) -> None:
        """Stop after the current token or prefill chunk, from any thread; then `Finished` comes."""
        self._cancelled.set()

    def __next__(self) -> Event:
        return next(self._events)

    def _run(
        self, model: MagistralModel, request: Request, tokenizer: Tokenizer
    ) -> Iterator[Event]:
        parser = Parser(tokenizer)
        reason: FinishReason = "length"
        mx.reset_peak_memory()
        start = time.perf_counter()
        first: float | None = None
        for step in generate(model, request):
            if isinstance(step, Prefill):
                yield step
            else:
                first = first or time.perf_counter()
                yield from parser.feed(step.id)
                if step.id == tokenizer.special.eos:
                    reason = "stop"
                    break
            if self._cancelled.is_set():
                reason = "cancelled"
                break
        yield from parser.finish()
        end = time.perf_counter()
        first = first or end
        yield Finished(
            reason,
            Stats(
                prompt_tokens=len(request.tokens),
                thinking_tokens=parser.thinking_tokens,
                answer_tokens=parser.answer_tokens,
                prefill_seconds=first - start,
                decode_seconds=end - first,
                first_token_seconds=first - start,
                peak_memory=mx.get_peak_memory(),
            ),
        )
