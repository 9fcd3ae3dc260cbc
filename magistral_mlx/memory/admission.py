"""Which answers fit into memory together: arithmetic over what each one may still need.

Answers are kept in the order in which they came. They fit if each of them could go on to what it
was promised while those after it stood still, those before it having ended: then the first one can
always go on, and when it ends the next one can, so that all of them come to their end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from magistral_mlx.cache.buffer import rounded
from magistral_mlx.cache.scheme import RESERVED
from magistral_mlx.memory.peak import Shape, feature_bytes, pass_bytes, prefill_bytes, row_bytes
from magistral_mlx.memory.plan import Plan

_OPEN = 4 * RESERVED  # tokens promised to an answer that may fill the context
_AHEAD = 64  # tokens of room below which caches are about to grow


@dataclass(frozen=True)
class Reservation:
    """What one answer takes, in tokens of context.

    held: what its caches have room for. promised: what it may rely on. most: prompt and answer at
    their longest. prefill: bytes that a step of reading its prompt takes in passing; features:
    those that its images take meanwhile. asked: somebody asked for that length, so all of it is
    promised.
    """

    held: int
    promised: int
    most: int
    prefill: int = 0
    features: int = 0
    asked: bool = False

    def short(self, length: int) -> bool:
        """Whether the caches, `length` tokens long, are about to grow."""
        return self.held < self.most and length + _AHEAD > self.held

    def grown(self) -> Reservation:
        """With caches that have grown as they do, by an eighth."""
        held = min(rounded(self.held + self.held // 8), rounded(self.most))
        return replace(self, held=held, promised=max(held, self.promised))

    def holding(self, tokens: int) -> Reservation:
        """With caches that have room for `tokens` at least."""
        held = max(self.held, tokens)
        return replace(self, held=held, promised=max(held, self.promised))

    def prefilled(self) -> Reservation:
        """With the prompt read."""
        return replace(self, prefill=0, features=0)


class Budget:
    """The memory of a plan, shared by the answers that run at once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._text = plan.model.config.text

    @cached_property
    def _total(self) -> int:
        """Bytes for all caches and all work in flight."""
        peak = self._plan.peak
        return self._plan.total - peak.weights - peak.vision

    def reservation(
        self, prompt: int, limit: int, images: Sequence[tuple[int, int]] = (), *, asked: bool
    ) -> Reservation:
        """What an answer of `limit` tokens at most takes as it begins.

        Args:
            prompt: tokens of the prompt. images: their sizes in pixels (height, width).
            asked: `limit` was asked for; otherwise it is all that the context holds.
        """
        plan = self._plan
        shape = Shape(prompt, 0, plan.chunk, tuple(images))
        prefill = prefill_bytes(plan.model.config, plan.scheme, shape, plan.profile)
        features = feature_bytes(plan.model.config, shape, plan.profile)
        if images and not plan.peak.vision:
            prefill += plan.model.weights.vision  # nobody planned for the tower
        held = prompt + min(limit, RESERVED)
        # Where the context is small, so is what an answer without a length keeps others from.
        open_ended = max(RESERVED, min(_OPEN, plan.context // 4))
        promised = prompt + (limit if asked else min(limit, open_ended))
        return Reservation(held, promised, prompt + limit, prefill, features, asked)

    def fits(self, reservations: Sequence[Reservation]) -> bool:
        """Whether requests with these reservations, oldest first, can all be finished."""
        passing = self._passing(reservations)
        after = 0
        for reservation in reversed(reservations):
            if passing + self._sequence_bytes(reservation.promised) + after > self._total:
                return False
            after += self._sequence_bytes(reservation.held)
        return True

    def active_bytes(self, reservations: Sequence[Reservation]) -> int:
        """Bytes that nothing else may take of what is there for caches: `PrefixCache` stays below.

        Work in flight counts as far as it goes beyond what is planned for a single answer.
        """
        caches = sum(self.cache(reservation.held) for reservation in reservations)
        in_flight = self._passing(reservations)
        if len(reservations) > 1:
            in_flight += sum(self._row(reservation.held) for reservation in reservations)
        return caches + max(0, in_flight - self._plan.peak.workspace)

    def cache(self, tokens: int) -> int:
        """Bytes of one answer's caches with room for `tokens`."""
        return self._plan.cache_bytes(tokens)

    def tokens(self, nbytes: int) -> int:
        """What caches of so many bytes have room for."""
        return bisect_left(range(self._plan.context), nbytes, key=self.cache)

    def _sequence_bytes(self, tokens: int) -> int:
        return self.cache(tokens) + self._row(tokens)

    def _row(self, tokens: int) -> int:
        plan = self._plan
        return row_bytes(self._text, plan.scheme, min(tokens, plan.context), plan.profile)

    def _passing(self, reservations: Sequence[Reservation]) -> int:
        """Work that no answer has for itself: a part of a prompt; or a pass, and a layer that
        grows in it. And the features of the images that are being read.
        """
        growing = max((self.cache(reservation.promised) for reservation in reservations), default=0)
        layer = growing // self._text.num_hidden_layers
        together = layer + pass_bytes(self._text, len(reservations), self._plan.profile)
        return max([together, *(reservation.prefill for reservation in reservations)]) + sum(
            reservation.features for reservation in reservations
        )
