"""Admission of requests by memory.

Requests are ordered by arrival. They fit together if each one could grow to its promised length
while all later ones keep their present size and all earlier ones have ended. Then the first can
always continue, and after it the next, so all of them finish.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from magistral_mlx.cache.buffer import rounded
from magistral_mlx.cache.scheme import RESERVED
from magistral_mlx.memory.peak import Shape, feature_bytes, pass_bytes, prefill_bytes, row_bytes
from magistral_mlx.memory.plan import Plan

_OPEN = 4 * RESERVED  # tokens promised to a request without a length limit
_AHEAD = 64  # tokens of spare capacity below which caches are about to grow


@dataclass(frozen=True)
class Reservation:
    """Memory reserved for one request, in tokens of context unless stated otherwise.

    held: capacity of its caches. promised: capacity it may rely on. most: prompt and output at
    their longest. prefill: temporary bytes of one prefill step. features: bytes of its images'
    features during prefill. tower: bytes of the vision tower during prefill, where its images need
    one that the plan does not include. asked: the length was requested, so all of it is promised.
    """

    held: int
    promised: int
    most: int
    prefill: int = 0
    features: int = 0
    tower: int = 0
    asked: bool = False

    def short(self, length: int) -> bool:
        """Whether the caches, which hold `length` tokens, are about to grow."""
        return self.held < self.most and length + _AHEAD > self.held

    def grown(self) -> Reservation:
        """Return the reservation with caches grown once, by an eighth."""
        held = min(rounded(self.held + self.held // 8), rounded(self.most))
        return replace(self, held=held, promised=max(held, self.promised))

    def holding(self, tokens: int) -> Reservation:
        """Return the reservation with caches of at least `tokens` capacity."""
        held = max(self.held, tokens)
        return replace(self, held=held, promised=max(held, self.promised))

    def prefilled(self) -> Reservation:
        """Return the reservation after prefill."""
        return replace(self, prefill=0, features=0, tower=0)


class Budget:
    """The memory of a plan, shared by the requests that run at once."""

    def __init__(self, plan: Plan, lent: Callable[[], int] = lambda: 0) -> None:
        """`lent`: bytes that adapters take now, and that are not in the plan."""
        self._plan, self._lent = plan, lent
        self._text = plan.model.config.text

    @cached_property
    def _total(self) -> int:
        """Bytes for all caches and temporary arrays."""
        peak = self._plan.peak
        return self._plan.total - peak.weights - peak.vision

    def reservation(
        self, prompt: int, limit: int, images: Sequence[tuple[int, int]] = (), *, asked: bool
    ) -> Reservation:
        """Return the initial reservation of a request.

        Args:
            prompt: tokens of the prompt.
            limit: largest number of output tokens.
            images: their sizes in pixels (height, width).
            asked: `limit` was requested; otherwise it is what the context allows.
        """
        plan = self._plan
        shape = Shape(prompt, 0, plan.chunk, tuple(images))
        prefill = prefill_bytes(plan.model.config, plan.scheme, shape, plan.profile)
        features = feature_bytes(plan.model.config, shape, plan.profile)
        tower = plan.model.weights.vision if images and not plan.peak.vision else 0
        held = prompt + min(limit, RESERVED)
        # In a small context a request without a limit is promised less, or it would block others.
        open_ended = max(RESERVED, min(_OPEN, plan.context // 4))
        promised = prompt + (limit if asked else min(limit, open_ended))
        return Reservation(held, promised, prompt + limit, prefill, features, tower, asked)

    def fits(self, reservations: Sequence[Reservation], more: int = 0) -> bool:
        """Whether requests with these reservations, oldest first, can all be finished.

        Args:
            more: bytes to be lent beside.
        """
        total = self._total - self._lent() - more
        passing = self._passing(reservations)
        after = 0
        for reservation in reversed(reservations):
            if passing + self._sequence_bytes(reservation.promised) + after > total:
                return False
            after += self._sequence_bytes(reservation.held)
        return True

    def active_bytes(self, reservations: Sequence[Reservation]) -> int:
        """Bytes of the plan's memory for caches that these requests use; `PrefixCache` gets the
        rest.

        Temporary arrays count as far as they exceed the plan's, which are those of one request.
        """
        caches = sum(self.cache(reservation.held) for reservation in reservations)
        in_flight = self._passing(reservations)
        if len(reservations) > 1:
            in_flight += sum(self._row(reservation.held) for reservation in reservations)
        return caches + max(0, in_flight - self._plan.peak.workspace)

    def cache(self, tokens: int) -> int:
        """Bytes of one request's caches with capacity for `tokens`."""
        return self._plan.cache_bytes(tokens)

    def tokens(self, nbytes: int) -> int:
        """Capacity in tokens of caches of `nbytes`."""
        return bisect_left(range(self._plan.context), nbytes, key=self.cache)

    def _sequence_bytes(self, tokens: int) -> int:
        return self.cache(tokens) + self._row(tokens)

    def _row(self, tokens: int) -> int:
        plan = self._plan
        return row_bytes(self._text, plan.scheme, min(tokens, plan.context), plan.profile)

    def _passing(self, reservations: Sequence[Reservation]) -> int:
        """Temporary bytes shared by all requests: the largest of a prefill step, and a decoding
        pass in which a layer's cache grows; plus the features of images during prefill, and the
        vision tower where the plan does not include it.
        """
        growing = max((self.cache(reservation.promised) for reservation in reservations), default=0)
        layer = growing // self._text.num_hidden_layers
        together = layer + pass_bytes(self._text, len(reservations), self._plan.profile)
        work = max([together, *(reservation.prefill for reservation in reservations)])
        tower = max((reservation.tower for reservation in reservations), default=0)
        return work + tower + sum(reservation.features for reservation in reservations)
