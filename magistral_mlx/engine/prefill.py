"""Prefill: images through the tower, then the prompt's tokens into the caches, in chunks."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.scheme import RESERVED
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.engine.images import iter_image_features_after
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.logprobs import OutputCollector, PromptLogprobCollector
from magistral_mlx.events import Prefill
from magistral_mlx.model.adapters import Adapter
from magistral_mlx.model.magistral import MagistralModel

_QUESTION = 256  # tokens that may well be others the next time, at the end of a prompt


@dataclass
class ComputedPrefix:
    """Caches that hold the beginning of a prompt, for the next generation to go on from.

    length: leading tokens of that prompt that they hold; what they hold beyond is trimmed off, and
    where that cannot be undone exactly, some of these are computed again.
    logits: (1, vocab_size) of the token after them, where they are the whole prompt.
    """

    caches: SequenceCaches
    length: int
    logits: mx.array | None = None


def prefill_sequence(
    model: MagistralModel,
    inputs: SequenceInputs,
    caches: SequenceCaches,
    prefix: ComputedPrefix | None,
    logprobs: PromptLogprobCollector | None = None,
) -> Generator[Prefill, int | None, mx.array]:
    """Put the whole prompt into the caches, yielding progress, as `prefill` does.

    The first step tells what the caches hold already, the next ones encode an image each.

    Args:
        prefix: what `caches` hold already; computed again where `logprobs` are wanted, and from
            the last length on that they can be trimmed to exactly.
        logprobs: gets those of the prompt's tokens.

    Returns:
        (1, vocab_size) logits of the token after the prompt.
    """
    tokens = inputs.tokens
    prefix = None if logprobs else prefix
    logits = prefix.logits if prefix and prefix.length >= len(tokens) else None
    wanted = 0 if prefix is None else min(prefix.length, len(tokens) - (logits is None))
    cached = caches.trimmable(wanted)
    if cached < wanted:
        logits = None
    caches.trim(cached)
    caches.reserve(len(tokens) + min(inputs.limit, RESERVED), len(tokens) + inputs.limit)
    if logits is not None:
        yield Prefill(cached, cached)
        return logits
    features = []
    for image in iter_image_features_after(
        model,
        tokens,
        inputs.images,
        cached,
        inputs.image_keys,
        inputs.image_features,
        inputs.adapter,
    ):
        features.append(image)
        yield Prefill(cached, len(tokens))
    images = mx.concatenate(features) if features else None
    return (
        yield from prefill(
            model, caches, tokens, images, inputs.chunk, inputs.snapshots, inputs.adapter, logprobs
        )
    )


def prefill(
    model: MagistralModel,
    caches: SequenceCaches,
    tokens: NDArray[np.int32],
    features: mx.array | None = None,
    chunk: int | None = None,
    snapshots: int = 0,
    adapter: Adapter | None = None,
    collector: OutputCollector | None = None,
) -> Generator[Prefill, int | None, mx.array]:
    """Run what the caches do not hold of a prompt through the decoder, yielding progress.

    What is sent is the number of tokens that the next chunk has at most. A chunk may begin or end
    inside an image's tokens. The head runs for the last position only, or for all where
    a `collector` wants them.

    Args:
        tokens: (L,) ids of the whole prompt, of which the caches hold the first ones, not all.
        features: the embeddings that stand at the image tokens still to come, in order.
        chunk: tokens at once; None is the backend's choice.
        snapshots: places that quantized caches can be trimmed back to, for prompts that share a
            part of this one: how many, 0 for none.
        adapter: of the sequence; None for the base alone.
        collector: gets the decoder's outputs, and the tokens that follow them.

    Returns:
        (1, vocab_size) logits of the token after the prompt.
    """
    chunk = chunk or backend().prefill_chunk
    cached = caches.length
    is_image = tokens == model.config.image_token_id
    is_image[:cached] = False
    first_feature = np.concatenate([[0], np.cumsum(is_image)])
    total = len(tokens)
    most = yield Prefill(cached, total)
    end = cached
    while end < total:
        start, end = end, _end(end, total, min(chunk, most or chunk), snapshots)
        with model.adapters.using([adapter]):
            h = model.embed(mx.array(tokens[None, start:end]))  # (1, L, D)
            places = np.flatnonzero(is_image[start:end])
            if features is not None and len(places):
                h[0, mx.array(places)] = features[first_feature[start] : first_feature[end]]
            if end < total and collector is None:
                model.prefill(h, caches)
            else:
                h = model(h, caches)
            if collector is not None:
                caches.evaluate(h)
                collector.add(model, h, tokens[start + 1 : end + 1])
        if snapshots:
            caches.snapshot(snapshots)
        if end < total:
            caches.evaluate()
            mx.clear_cache()
            most = yield Prefill(end, total)
    with model.adapters.using([adapter]):
        logits = model.logits(h[:, -1:])[:, 0]
    caches.evaluate(logits)
    mx.clear_cache()
    yield Prefill(total, total)
    return logits


def _end(start: int, total: int, chunk: int, snapshots: int) -> int:
    """Return the end of a chunk; one ends with a snapshot `_QUESTION` tokens before the prompt."""
    end = min(start + chunk, total)
    question = total - _QUESTION
    return question if snapshots and start < question < end else end
