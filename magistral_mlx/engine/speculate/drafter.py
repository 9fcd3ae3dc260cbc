"""Guesses from a smaller model with the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.model.magistral import MagistralModel

_FEW = 64  # tokens to read before guessing; more are read between two passes, chunk by chunk


class Drafter:
    """A draft model with caches of its own, which go from one sequence to the next.

    Only a sequence that decodes alone is drafted for, so one set of caches is enough, and what a
    new sequence has in common with the last one is not read again.
    """

    def __init__(
        self, model: MagistralModel, caches: Sequence[KVCache], cost: float, chunk: int | None
    ) -> None:
        """`cost`: of a pass of this model, in passes of the one that it drafts for. `chunk`: tokens
        that are read at once; None is the backend's choice."""
        self.cost = cost
        self._model, self._caches = model, caches
        self._chunk = chunk or backend().prefill_chunk
        self._held: list[int] = []  # tokens in the caches
        self._text: Sequence[int] = ()  # whose tokens they are, and how many of them surely
        self._sure = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return sum(cache.nbytes for cache in self._caches)

    def ready(self, text: Sequence[int]) -> bool:
        """Whether so little of `text` is still to be read that guesses can follow at once.

        Otherwise a chunk is read now, so that no pass waits for all of a long prompt. A text only
        grows while it is the same object.
        """
        start = self._keep(text)
        if len(text) - start <= _FEW:
            return True
        self._read(text[start : start + self._chunk])
        mx.eval([array for cache in self._caches for array in cache.state])
        return False

    def guess(self, text: Sequence[int], sampler: Sampler, count: int) -> list[int]:
        """`count` tokens that may follow `text`, drawn as `sampler` draws at their positions."""
        logits = self._read(text[self._keep(text) :])
        guesses: list[int] = []
        for position in range(len(text), len(text) + count):
            # Read at once: a pass that is dispatched while the one before it works copies caches.
            guesses.append(sampler.draw(logits, position).value)
            if len(guesses) < count:
                logits = self._read(guesses[-1:])
        return guesses

    def _keep(self, text: Sequence[int]) -> int:
        """Trim the caches to what they share with `text`, its last token left out -> how much."""
        shared = self._sure if text is self._text else 0
        most = min(len(self._held), len(text) - 1)
        while shared < most and self._held[shared] == text[shared]:
            shared += 1
        if shared < len(self._held):
            del self._held[shared:]
            for cache in self._caches:
                cache.trim(shared)
        self._text, self._sure = text, shared
        return shared

    def _read(self, tokens: Sequence[int]) -> mx.array:
        """(1, vocab_size) logits of the token after `tokens`, which go into the caches."""
        self._held += tokens
        h = self._model(self._model.embed(mx.array([tokens])), self._caches)
        return self._model.logits(h[:, -1:])[:, 0]
