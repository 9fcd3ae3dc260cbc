"""What one sequence needs from one token to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.engine.control import Control
from magistral_mlx.engine.sampler import (
    UNCONSTRAINED,
    DrawConstraints,
    SampledToken,
    Sampler,
    dispatch,
)
from magistral_mlx.engine.speculate.speculator import Speculator
from magistral_mlx.events import Forced


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was produced.

    logprob and top, (id, log-probability) of the likeliest, are there if they were asked for.
    forced tells why the engine put the token itself: to close a trace.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    forced: Forced | None = None


class Row:
    """A sequence between two passes: one token is drawn and not in the caches yet, the pending one.

    finish: why it ended; None while it goes on. error: what its control or sampler raised, which
    ends it as well. caches: they hold all tokens that were given out, but for the last one at the
    limit. position: of the pending token. passes: over the weights so far.
    """

    def __init__(
        self,
        caches: Sequence[KVCache],
        logits: mx.array,
        sampler: Sampler,
        limit: int,
        *,
        stop: frozenset[int] = frozenset(),
        control: Control | None = None,
        speculator: Speculator | None = None,
    ) -> None:
        """Draw the first token from `logits`, (1, vocab_size), and let the device begin.

        Args:
            limit: tokens to produce at most, 1 or more.
            stop: ids that end the sequence, and are the last one then.
            speculator: guesses tokens, where the row decodes alone.
        """
        self.caches = caches
        self.sampler = sampler
        self.control = control
        self.speculator = speculator
        self.finish: Literal["stop", "length"] | None = None
        self.error: Exception | None = None
        self.position = caches[0].length
        self.passes = 0
        self._stop = stop
        self._left = limit
        self._constraints = control.constraints() if control else UNCONSTRAINED
        self.pending = sampler.draw(logits, self.position, self._constraints)
        self._following: tuple[SampledToken, DrawConstraints] | None = None
        dispatch([self.pending])

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    @property
    def at_limit(self) -> bool:
        """Whether the pending token is the last one."""
        return self._left == 1

    def guesses(self) -> list[int]:
        """What is worth checking together with the pending token; none where nothing is.

        Waits for the pending token only where something is in sight.
        """
        speculator, most = self.speculator, self._left - 2
        if speculator is None or most < 1 or not speculator.in_sight(most):
            return []
        if self.pending.value in self._stop:
            return []
        return speculator.guesses(self.pending.value, most)

    def draw_ahead(self, logits: mx.array) -> None:
        """Build the draw after the pending one, where nothing on the host has a say in it."""
        if self.control is None:
            self._draw(logits)

    def give(self) -> Token:
        """The pending token, as soon as the device has it."""
        forced = self._constraints.forced
        token = _token(self.pending, forced[1] if forced else None)
        self._left -= 1
        if token.id in self._stop:
            self.finish = "stop"
        elif self._left == 0:
            self.finish = "length"
        if self.speculator:
            self.speculator.observe(token.id)
        return token

    def observe(self, token: Token) -> None:
        """Let the control look at the token."""
        if self.control is None or self.error:
            return
        try:
            self.control.observe(token.id)
        except Exception as error:
            self.error = error

    def move_on(self, logits: mx.array) -> None:
        """Make the following token the pending one, drawing it now if that had to wait."""
        if self._following is None and not self.error:
            self._draw(logits)
        if self._following is not None:
            self.go_to(*self._following)
            self.passes += 1

    def go_to(self, draw: SampledToken, constraints: DrawConstraints) -> None:
        """Make `draw` the pending token."""
        self.pending, self._constraints, self._following = draw, constraints, None
        self.position += 1

    def _draw(self, logits: mx.array) -> None:
        try:
            constraints = self.control.constraints() if self.control else UNCONSTRAINED
            self._following = self.sampler.draw(logits, self.position + 1, constraints), constraints
        except Exception as error:
            self.error = error


def _token(draw: SampledToken, forced: Forced | None) -> Token:
    if draw.logprobs is None:
        return Token(draw.value, forced=forced)
    logprob, top = draw.logprobs.read()
    return Token(draw.value, logprob, top, forced)
