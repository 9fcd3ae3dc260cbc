"""Frozen inputs of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.cache.attention import WORKSPACE
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.engine.constraint import Grammar
from magistral_mlx.engine.images import ImageFeatureCache, ImageKey
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.speculate.speculator import Speculation
from magistral_mlx.engine.thinking import ThinkingRules
from magistral_mlx.engine.vocabulary import Vocabulary
from magistral_mlx.model.adapters import Adapter


@dataclass(frozen=True, eq=False)
class SequenceInputs:
    """Prompt, options and cache layout of one sequence.

    tokens: (L,) prompt ids. images: (3, H, W) pixels each, in the order of their tokens.
    limit: tokens to produce at most; L + limit fits the context.
    scheme: how the caches store keys and values. chunk: prompt tokens at once; None is the
        backend's choice. workspace: bytes that attention may take at once.
    stop_tokens: ids that end the sequence, the end of the turn among them.
    minimum: tokens before which none of those is drawn; not together with a grammar.
    thinking: rules for the trace. grammar: constrains the answer, after the trace or from the
        start if there is none.
    logprobs: None for none, 0 for those of the tokens themselves, k to name the k likeliest too.
    prompt_logprobs: the same of the prompt's tokens, which are all computed then.
    head_rows: positions of a chunk that go through the head at once for them.
    vocabulary: finds the ends of sentences in the trace, and tells prose from numbers.
    image_features: features of images encoded before, by `image_keys`, one an image.
    speculation: sources of draft tokens while this sequence decodes alone; None for none.
    snapshots: places in the prompt that quantized caches can be trimmed back to, later.
    adapter: what changes the model's matrices for this sequence; None for the base alone.
    """

    tokens: NDArray[np.int32]
    images: Sequence[NDArray[np.float32]]
    sampling: Sampling
    limit: int
    scheme: KVScheme = FULL
    chunk: int | None = None
    workspace: int = WORKSPACE
    stop_tokens: frozenset[int] = frozenset()
    minimum: int = 0
    thinking: ThinkingRules | None = None
    grammar: Grammar | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    head_rows: int = 1
    vocabulary: Vocabulary | None = None
    image_keys: Sequence[ImageKey] = ()
    image_features: ImageFeatureCache | None = None
    speculation: Speculation | None = None
    snapshots: int = 0
    adapter: Adapter | None = None
