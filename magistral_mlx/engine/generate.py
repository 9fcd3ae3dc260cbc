"""The generation loop that every front stands on: images, prefill, decode."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.cache.attention import WORKSPACE
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.cache.scheme import FULL, RESERVED, KVScheme
from magistral_mlx.engine.constraint import Grammar, GrammarMask
from magistral_mlx.engine.control import Control
from magistral_mlx.engine.decode import advance
from magistral_mlx.engine.images import ImageKey
from magistral_mlx.engine.prefill import (
    ComputedPrefix,
    ImageFeatureCache,
    iter_image_features_after,
    prefill,
)
from magistral_mlx.engine.row import Row, Token
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.speculate.speculator import Speculation, Speculator
from magistral_mlx.engine.thinking import ThinkingControl, ThinkingRules
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.errors import InvalidOption
from magistral_mlx.events import Prefill, ThinkingEnd
from magistral_mlx.model.magistral import MagistralModel

__all__ = ["ComputedPrefix", "Generation", "SequenceInputs", "Token", "decode_together", "generate"]


@dataclass(frozen=True, eq=False)
class SequenceInputs:
    """What one generation works on.

    tokens: (L,) prompt ids. images: (3, H, W) pixels each, in the order of their tokens.
    limit: tokens to produce at most; L + limit fits the context.
    scheme: how the caches store keys and values. chunk: prompt tokens at once; None is the
        backend's choice. workspace: bytes that attention may take at once.
    stop_tokens: ids that end the generation, the end of the turn among them.
    thinking: what holds for the trace. grammar: what holds for the answer, after the trace or
        from the start if there is none.
    logprobs: None for none, 0 for those of the tokens themselves, k to name the k likeliest too.
    vocabulary: lets the trace be cut at the end of a sentence, and tells prose from numbers.
    image_features: features of images encoded before, by `image_keys`, one an image.
    speculation: how tokens are guessed while this generation decodes alone; None is not at all.
    snapshots: places in the prompt that quantized caches can be trimmed back to, later.
    """

    tokens: NDArray[np.int32]
    images: Sequence[NDArray[np.float32]]
    sampling: Sampling
    limit: int
    scheme: KVScheme = FULL
    chunk: int | None = None
    workspace: int = WORKSPACE
    stop_tokens: frozenset[int] = frozenset()
    thinking: ThinkingRules | None = None
    grammar: Grammar | None = None
    logprobs: int | None = None
    vocabulary: Vocabulary | None = None
    image_keys: Sequence[ImageKey] = ()
    image_features: ImageFeatureCache | None = None
    speculation: Speculation | None = None
    snapshots: int = 0


def generate(
    model: MagistralModel, request: SequenceInputs, start: ComputedPrefix | None = None
) -> Generation:
    """Answer a request, step by step.

    Args:
        start: caches of an earlier generation whose prompt, or prompt and answer, began as this
            one does. They are taken over: the earlier generation must be done. A quantized cache
            that is trimmed to a length that is not `trimmable` keeps its newest tokens quantized,
            so that what follows is as good, but not the same to the last bit.

    Raises:
        InvalidOption: an option that this model's vocabulary does not allow.
    """
    return Generation(model, request, start)


class Generation(Iterator[Prefill | Token]):
    """Progress through the prompt, then tokens, until a stop token or the limit.

    Iterate over it; or call `prefill` while it is `prefilling`, and then `decode_together`, alone
    or with others, until it has `ended`.

    caches: what they hold is the beginning of prompt and output, as far as `length` says.
    prefilled: for the next generation of the same prompt, once the prompt is in the caches.
    """

    def __init__(
        self, model: MagistralModel, request: SequenceInputs, start: ComputedPrefix | None = None
    ) -> None:
        vocab_size = model.config.text.vocab_size
        if request.logprobs is not None and not 0 <= request.logprobs < vocab_size:
            raise InvalidOption(f"logprobs is {request.logprobs}; it must be 0 or more tokens.")
        thinking = request.thinking
        self._thinking = (
            ThinkingControl(thinking, request.vocabulary) if thinking and thinking.enabled else None
        )
        self._mask = GrammarMask(request.grammar, vocab_size) if request.grammar else None
        self._model, self._request = model, request
        self.caches = (
            start.caches if start else model.make_caches(request.scheme, request.workspace)
        )
        self.prefilled: ComputedPrefix | None = None
        self._prefilling: Generator[Prefill, int | None, mx.array] | None
        self._prefilling = _prefill(model, request, self.caches, start)
        self._begun = False  # to fill
        self._row: Row | None = None
        self._speculator: Speculator | None = None
        self._error: Exception | None = None
        self._given = 0  # tokens
        self._ready: deque[Token] = deque()  # of these, what the iterator has still to give
        self._closed = False

    @property
    def prefilling(self) -> bool:
        """Whether more of the prompt is to go into the caches."""
        return self._prefilling is not None

    @property
    def finish(self) -> Literal["stop", "length"] | None:
        """Why it ended by itself; None while it goes on."""
        return self._row.finish if self._row else None

    @property
    def error(self) -> Exception | None:
        """What its grammar or its sampler raised, which ends it. Iterating raises it."""
        return self._row.error if self._row else self._error

    @property
    def ended(self) -> bool:
        """Whether no pass gives it any more tokens."""
        return self._closed or self.finish is not None or self.error is not None

    @property
    def thinking_end(self) -> ThinkingEnd | None:
        """How the trace ended; None if there was none, or it is still open."""
        return self._thinking.end if self._thinking else None

    @property
    def mask_seconds(self) -> float:
        """Seconds that the grammar has taken on the host."""
        return self._mask.cost.seconds if self._mask else 0.0

    @property
    def masks(self) -> int:
        """Masks that the grammar has computed."""
        return self._mask.cost.masks if self._mask else 0

    @property
    def passes(self) -> int:
        """Passes over the weights since the first token, which the prompt's gave."""
        return self._row.passes if self._row else 0

    @property
    def drafted(self) -> int:
        """Guesses that were checked."""
        return self._speculator.drafted if self._speculator else 0

    @property
    def accepted(self) -> int:
        """Guesses that were right."""
        return self._speculator.accepted if self._speculator else 0

    def prefill(self, most: int | None = None) -> Prefill:
        """Put one chunk of the prompt into the caches -> how far that is.

        The first calls look at the images, one each, and tell what the caches held already.

        Args:
            most: tokens that the chunk has at most, where the request's chunks are larger.
        """
        assert self._prefilling is not None, "the prompt is in the caches already"
        progress = self._prefilling.send(most if self._begun else None)
        self._begun = True
        if progress.done == progress.total:
            logits = _returned(self._prefilling)
            self._prefilling = None
            self.prefilled = ComputedPrefix(self.caches, len(self._request.tokens), logits)
        return progress

    def __next__(self) -> Prefill | Token:
        if self.prefilling:
            return self.prefill()
        if not self._ready:
            self._ready.extend(*decode_together(self._model, [self]))
        if self._ready:
            return self._ready.popleft()
        if self.error and not self._closed:
            self.close()
            raise self.error
        raise StopIteration

    def close(self, unused: int = 0) -> None:
        """Stop here. The caches hold what was given out and stay good to go on from.

        Args:
            unused: tokens to forget, at the end of what the last pass gave.
        """
        unused += len(self._ready)
        self._ready.clear()
        if self._prefilling is not None:
            self._prefilling.close()
            self._prefilling = None
        if unused:
            for cache in self.caches:
                cache.trim(len(self._request.tokens) + self._given - unused)
        self._closed = True

    def _begin(self) -> Row | None:
        """Draw the first token, if that has not been done.

        Not before, since what a row holds belongs to the thread that decodes.
        """
        if self._row or self.ended:
            return self._row
        assert self.prefilled and self.prefilled.logits is not None, "prefill comes first"
        request, vocab_size = self._request, self._model.config.text.vocab_size
        try:
            self._speculator = _speculator(request, vocab_size)
            self._row = Row(
                self.caches,
                self.prefilled.logits,
                _sampler(request, request.sampling, vocab_size, request.logprobs),
                request.limit,
                stop=request.stop_tokens,
                control=self._control(),
                speculator=self._speculator,
            )
        except Exception as error:
            self._error = error
        return self._row

    def _control(self) -> Control | None:
        dry = self._request.sampling.dry
        if self._thinking is None and self._mask is None and dry is None:
            return None
        return Control(self._request.tokens, self._thinking, self._mask, dry)


def decode_together(
    model: MagistralModel, generations: Sequence[Generation]
) -> list[tuple[Token, ...]]:
    """One pass over the weights for all `generations` -> the new tokens of each.

    All of their prompts are in their caches. One that has ended gets no tokens; one whose last
    tokens these are has ended afterwards, by its `finish` or its `error`.

    Raises:
        RuntimeError: the device failed. The caches of all of them are of no use any more.
    """
    going: dict[Generation, Row] = {}
    for generation in generations:
        row = generation._begin()
        if row and not generation.ended:
            going[generation] = row
    given = dict(zip(going, advance(model, list(going.values())), strict=True))
    for generation, tokens in given.items():
        generation._given += len(tokens)
    return [given.get(generation, ()) for generation in generations]


def _sampler(
    request: SequenceInputs, sampling: Sampling, vocab_size: int, top_logprobs: int | None
) -> Sampler:
    thinking = request.thinking
    return Sampler(
        sampling,
        request.tokens,
        vocab_size,
        top_logprobs=top_logprobs,
        banned=frozenset(
            () if thinking is None or thinking.enabled else (thinking.open, thinking.close)
        ),
    )


def _speculator(request: SequenceInputs, vocab_size: int) -> Speculator | None:
    if request.speculation is None:
        return None
    # A draft model draws as the request does, but for what depends on earlier tokens.
    sampling = request.sampling.without_penalties()
    sampler = _sampler(request, sampling, vocab_size, None)
    return Speculator(request.speculation, request.tokens.tolist(), request.scheme, sampler)


def _prefill(
    model: MagistralModel,
    request: SequenceInputs,
    caches: Sequence[KVCache],
    start: ComputedPrefix | None,
) -> Generator[Prefill, int | None, mx.array]:
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
    seen = []
    looks = iter_image_features_after(
        model, tokens, request.images, held, request.image_keys, request.image_features
    )
    for features in looks:
        seen.append(features)
        yield Prefill(held, len(tokens))
    images = mx.concatenate(seen) if seen else None
    return (yield from prefill(model, caches, tokens, images, request.chunk, request.snapshots))


def _returned(steps: Generator[Prefill, int | None, mx.array]) -> mx.array:
    """What `steps` return after their last one."""
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise AssertionError("a prompt goes on after its last token")
