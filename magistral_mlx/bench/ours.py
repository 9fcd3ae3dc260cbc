"""This package's runtime behind the protocol of `worker`.

python -m magistral_mlx.bench.ours [KV_SCHEME [ADAPTER]]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from magistral_mlx import backend
from magistral_mlx.api.options import Options
from magistral_mlx.backend import DTYPES, mx
from magistral_mlx.bench.worker import random_layer, random_pixels, serve
from magistral_mlx.cache.scheme import FULL, KVScheme
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.checkpoint.adapters.load import load_adapter
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter
from magistral_mlx.checkpoint.folder import Checkpoint
from magistral_mlx.checkpoint.load import load_model, load_vision
from magistral_mlx.distributed.ranks import Ranks, join_ranks
from magistral_mlx.engine.generate import Generation
from magistral_mlx.engine.images import encode_images
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sampler import Sampler, dispatch
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.events import Prefill
from magistral_mlx.hub.adapters import locate_adapter
from magistral_mlx.memory.plan import PlanRequest
from magistral_mlx.model.adapters import Adapter
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.runtime.precision import default_dtype

_ENDLESS = 1 << 20


class Ours:
    """The engine, used as by every front end of this package."""

    def __init__(self, scheme: KVScheme = FULL, adapter: str | None = None) -> None:
        self._scheme, self._adapter_name = scheme, adapter
        self._adapter: Adapter | None = None

    def load(self, folder: Path, dtype: str | None) -> None:
        self._checkpoint = Checkpoint.open(folder)
        self._model = self._load_part(dtype) or load_model(
            self._checkpoint, DTYPES[dtype] if dtype else None
        )
        if self._adapter_name is not None:
            stored = StoredAdapter.open(locate_adapter(self._adapter_name), self._model.config)
            self._adapter = load_adapter(stored, self._model)

    def close(self) -> None:
        """Send the other ranks home, if the model is split."""
        if leader := join_ranks():
            leader.close()

    def _load_part(self, dtype: str | None) -> MagistralModel | None:
        """Rank 0's part of a model that is split; None where this is the only process."""
        leader = join_ranks()
        if leader is None:
            return None
        ranks = Ranks(leader, self._checkpoint)
        request = PlanRequest(kv=self._scheme.name, images=0)
        source = str(self._checkpoint.folder)
        self._checkpoint, plan = ranks.hold_plan(source, request, dtype, None, "auto")
        computed = DTYPES[dtype] if dtype else default_dtype(self._checkpoint)
        return ranks.load(self._checkpoint, plan, computed, lambda done, total: None)

    def start(self, tokens: list[int], filled: int) -> Iterator[int]:
        ids = np.array([0] * filled + tokens, np.int32)
        request = SequenceInputs(
            ids, (), Sampling(0.0), _ENDLESS, scheme=self._scheme, adapter=self._adapter
        )
        start = ComputedPrefix(self._caches(filled), filled) if filled else None
        return _ids(Generation(self._model, request, start))

    def see(self, count: int, side: int) -> mx.array:
        if not self._model.vision_loaded:
            load_vision(self._model, self._checkpoint)
        features = encode_images(self._model, random_pixels(count, side))
        assert features is not None
        mx.eval(features)
        return features

    def graph(self, filled: int) -> Callable[[], list[Any]]:
        caches = self._caches(filled)
        token = mx.array([1000])

        def build() -> list[Any]:
            with self._model.adapters.using([self._adapter]):
                h = self._model(self._model.embed(token[None]), caches)
                logits = self._model.logits(h)[:, 0]
            return [mx.argmax(logits, axis=-1), *(a for cache in caches for a in cache.state)]

        return build

    def passes(self, filled: int) -> Callable[[int], None]:
        """Return a function that runs a pass over some tokens and samples after each of them."""
        caches = self._caches(filled)
        sampling = Options().sampling(0)
        sampler = Sampler(sampling, np.zeros(1, np.int32), self._model.config.text.vocab_size)

        def run(count: int) -> None:
            with self._model.adapters.using([self._adapter]):
                h = self._model(self._model.embed(mx.full((1, count), 1000)), caches)
                logits = self._model.logits(h)[0]
            dispatch([sampler.draw(logits[n : n + 1], filled + n) for n in range(count)])
            mx.synchronize()
            caches.trim(filled)

        return run

    @staticmethod
    @contextmanager
    def as_on_metal() -> Iterator[None]:
        """Build graphs as for a GPU: one product per matrix, and one kernel for attention."""
        here = backend.backend
        metal = replace(
            here(),
            name="metal",
            dequantize_from_rows=None,
            fused_attention=True,
            few_rows=64,
            packed_attention=True,
        )
        modules = [m for name, m in sys.modules.items() if name.startswith("magistral_mlx.")]
        users: list[Any] = [m for m in modules if getattr(m, "backend", None) is here]
        with ExitStack() as stack:
            for module in users:
                stack.callback(setattr, module, "backend", here)
                module.backend = lambda: metal
            yield

    def _caches(self, filled: int) -> SequenceCaches:
        caches = self._model.make_caches(self._scheme)
        text, dtype = self._model.config.text, self._model.dtype
        shape = (1, text.num_key_value_heads, filled, text.head_dim)
        for layer, cache in enumerate(caches):
            cache.reserve(filled + 1024)
            if filled:
                keys, values = (mx.array(part).astype(dtype) for part in random_layer(shape, layer))
                cache.append(keys, values)
                mx.eval(cache.state)
        return caches


def _ids(generation: Generation) -> Iterator[int]:
    try:
        for step in generation:
            if not isinstance(step, Prefill):
                yield step.id
    finally:
        generation.close()  # frees its caches without waiting for garbage collection


if __name__ == "__main__":
    arguments = sys.argv[1:]
    serve(
        Ours(
            KVScheme.parse(arguments[0]) if arguments else FULL,
            arguments[1] if len(arguments) > 1 else None,
        )
    )
