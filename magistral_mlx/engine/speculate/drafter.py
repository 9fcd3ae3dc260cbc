"""Draft tokens from a smaller model with the same tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from magistral_mlx.backend import backend, mx
from magistral_mlx.cache.sequence import SequenceCaches
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.model.magistral import MagistralModel

_FEW = 64  # unread tokens up to which it drafts at once; more are prefilled between two passes


class Drafter:
    """A draft model with one set of caches, passed on from one sequence to the next.

    Only a sequence that decodes alone gets draft tokens, so one set of caches is enough. A prefix
    that a new sequence shares with the last one is not prefilled again.
    """

    def __init__(
        self, model: MagistralModel, caches: SequenceCaches, cost: float, chunk: int | None
    ) -> None:
        """Wrap a loaded draft model.

        Args:
            cost: cost of a pass of this model, in passes of the main model.
            chunk: prefill chunk in tokens; None for the backend's default.
        """
        self.cost = cost
        self._model, self._caches = model, caches
        self._chunk = chunk or backend().prefill_chunk
        self._held: list[int] = []  # tokens in the caches
        self._text: Sequence[int] = ()  # the last sequence
        self._sure = 0  # tokens of `_text` that are known to equal `_held`

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        return self._caches.nbytes

    def ready(self, text: Sequence[int]) -> bool:
        """Whether the caches hold enough of `text` to draft at once.

        Otherwise one chunk is prefilled now, so that no pass waits for all of a long prompt. As
        long as `text` is the same object it must only grow.
        """
        start = self._keep(text)
        if len(text) - start <= _FEW:
            return True
        self._read(text[start : start + self._chunk])
        self._caches.evaluate()
        return False

    def guess(self, text: Sequence[int], sampler: Sampler, count: int) -> list[int]:
        """Draft `count` tokens that may follow `text`, sampled by `sampler` at their positions."""
        logits = self._read(text[self._keep(text) :])
        drawn: list[mx.array] = []
        for position in range(len(text), len(text) + count):
            token = sampler.draw(logits, position).token
            drawn.append(token)
            if self._model.overlaps_passes:
                mx.async_eval(token)
            else:
                mx.eval(token)  # a pass dispatched while another runs would copy the caches
            if len(drawn) < count:
                logits = self._append(token)
        guesses = [cast(int, token.item()) for token in drawn]
        self._held += guesses[:-1]
        return guesses

    def _keep(self, text: Sequence[int]) -> int:
        """Trim the caches to the prefix shared with `text` without its last token; return its
        length."""
        shared = self._sure if text is self._text else 0
        most = min(len(self._held), len(text) - 1)
        while shared < most and self._held[shared] == text[shared]:
            shared += 1
        del self._held[shared:]
        self._caches.trim(shared)
        self._text, self._sure = text, shared
        return shared

    def _read(self, tokens: Sequence[int]) -> mx.array:
        """Append `tokens` to the caches and return the logits after them, (1, vocab_size)."""
        self._held += tokens
        return self._append(mx.array(list(tokens)))

    def _append(self, tokens: mx.array) -> mx.array:
        """Append (L,) tokens to the caches alone -> (1, vocab_size) logits, still lazy."""
        h = self._model(self._model.embed(tokens[None]), self._caches)
        return self._model.logits(h[:, -1:])[:, 0]
