"""The generation loop that every front stands on: pictures, prefill, decode."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import WORKSPACE
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.scheme import FULL, RESERVED, KVScheme
from magistral_mlx.engine.constraint import Grammar, GrammarMask
from magistral_mlx.engine.control import Control
from magistral_mlx.engine.decode import Token, decode
from magistral_mlx.engine.pictures import PictureKey
from magistral_mlx.engine.prefill import Prefilled, SeenPictures, prefill, see_after
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.thinking import Thinking, ThinkingControl
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.errors import InvalidOption
from magistral_mlx.events import FinishReason, Prefill, ThinkingEnd
from magistral_mlx.model.magistral import MagistralModel

__all__ = ["Generation", "Prefilled", "Request", "Token", "generate"]


@dataclass(frozen=True, eq=False)
class Request:
    """What one generation works on.

    tokens: (L,) prompt ids. pictures: (3, H, W) pixels each, in the order of their tokens.
    limit: tokens to produce at most; L + limit fits the context.
    scheme: how the caches store keys and values. chunk: prompt tokens at once; None is the
        backend's choice. workspace: bytes that attention may take at once.
    stop_tokens: ids that end the generation, the end of the turn among them.
    thinking: what holds for the trace. grammar: what holds for the answer, after the trace or
        from the start if there is none.
    logprobs: None for none, 0 for those of the tokens themselves, k to name the k likeliest too.
    vocabulary: lets the trace be cut at the end of a sentence, and tells prose from numbers.
    seen: features of pictures seen before, by `picture_keys`, one a picture.
    """

    tokens: NDArray[np.int32]
    pictures: Sequence[NDArray[np.float32]]
    sampling: Sampling
    limit: int
    scheme: KVScheme = FULL
    chunk: int | None = None
    workspace: int = WORKSPACE
    stop_tokens: frozenset[int] = frozenset()
    thinking: Thinking | None = None
    grammar: Grammar | None = None
    logprobs: int | None = None
    vocabulary: Vocabulary | None = None
    picture_keys: Sequence[PictureKey] = ()
    seen: SeenPictures | None = None


def generate(model: MagistralModel, request: Request, start: Prefilled | None = None) -> Generation:
    """Answer a request, step by step.

    Args:
        start: caches of an earlier generation whose prompt, or prompt and answer, began as this
            one does. They are taken over: the earlier generation must be done. A quantized cache
            that is trimmed by more than its scheme's slack keeps its newest tokens quantized, so
            that what follows is as good, but not the same to the last bit.

    Raises:
        InvalidOption: an option that this model's vocabulary does not allow.
    """
    return Generation(model, request, start)


class Generation(Iterator[Prefill | Token]):
    """Progress through the prompt, then tokens, until a stop token or the limit.

    finish: why it ended; None while it goes on. caches: what they hold is the beginning of prompt
    and output, as far as `length` says. prefilled: for the next generation of the same prompt,
    once the prompt is in the caches.
    """

    def __init__(
        self, model: MagistralModel, request: Request, start: Prefilled | None = None
    ) -> None:
        vocab_size = model.config.text.vocab_size
        if request.logprobs is not None and not 0 <= request.logprobs < vocab_size:
            raise InvalidOption(f"logprobs is {request.logprobs}; it must be 0 or more tokens.")
        request.sampling.check_ids(vocab_size)
        thinking = request.thinking
        self._thinking = (
            ThinkingControl(thinking, request.vocabulary) if thinking and thinking.enabled else None
        )
        self._mask = GrammarMask(request.grammar, vocab_size) if request.grammar else None
        self._steps = self._run(model, request, start)
        self.caches = (
            start.caches if start else model.make_caches(request.scheme, request.workspace)
        )
        self.finish: FinishReason | None = None
        self.prefilled: Prefilled | None = None

    @property
    def thinking_end(self) -> ThinkingEnd | None:
        """How the trace ended; None if there was none, or it is still open."""
        return self._thinking.end if self._thinking else None

    @property
    def mask_seconds(self) -> float:
        """Seconds that the grammar has taken on the host."""
        return self._mask.seconds if self._mask else 0.0

    @property
    def masks(self) -> int:
        """Masks that the grammar has computed."""
        return self._mask.count if self._mask else 0

    def __next__(self) -> Prefill | Token:
        return next(self._steps)

    def close(self) -> None:
        """Stop here. The caches hold what was yielded and stay good to go on from."""
        self._steps.close()

    def _run(
        self, model: MagistralModel, request: Request, start: Prefilled | None
    ) -> Generator[Prefill | Token, None, None]:
        logits = yield from _fill(model, request, self.caches, start)
        self.prefilled = Prefilled(self.caches, len(request.tokens), logits)
        steps = decode(
            model,
            self.caches,
            logits,
            _sampler(request, model.config.text.vocab_size),
            request.limit,
            stop=request.stop_tokens,
            control=self._control(request),
        )
        for token in steps:
            if token.id in request.stop_tokens:
                self.finish = "stop"
            yield token
        self.finish = self.finish or "length"

    def _control(self, request: Request) -> Control | None:
        dry = request.sampling.dry
        if self._thinking is None and self._mask is None and dry is None:
            return None
        return Control(request.tokens, self._thinking, self._mask, dry)


def _sampler(request: Request, vocab_size: int) -> Sampler:
    thinking = request.thinking
    return Sampler(
        request.sampling,
        request.tokens,
        vocab_size,
        top_logprobs=request.logprobs,
        banned=frozenset(() if thinking is None or thinking.enabled else (thinking.open,)),
    )


def _fill(
    model: MagistralModel, request: Request, caches: Sequence[KVCache], start: Prefilled | None
) -> Generator[Prefill, None, mx.array]:
    """The whole prompt into the caches -> (1, vocab_size) logits of the token after it."""
    tokens = request.tokens
    logits = start.logits if start and start.length >= len(tokens) else None
    held = 0 if start is None else min(start.length, len(tokens) - (logits is None))
    for cache in caches:
        cache.trim(held)
        cache.reserve(len(tokens) + min(request.limit, RESERVED), len(tokens) + request.limit)
    if logits is not None:
        yield Prefill(held, held)
        return logits
    features = see_after(
        model, tokens, request.pictures, held, request.picture_keys, request.seen
    )
    return (yield from prefill(model, caches, tokens, features, request.chunk))
