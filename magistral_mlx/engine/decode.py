"""Token by token, for as many sequences at once as there are: one pass over the weights a token.

A sequence is a row. Between two passes it has one token that is drawn and not yet in its caches,
the pending one; a pass puts it there, gives it out, and draws the one after it. So rows join and
leave between any two passes, and each keeps its own caches, sampler, control and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from magistral_mlx.backend import mx
from magistral_mlx.cache.batch import batch_caches
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.engine.control import Control
from magistral_mlx.engine.sampler import FREE, Draw, Sampler, dispatch
from magistral_mlx.events import Forced
from magistral_mlx.model.magistral import MagistralModel


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
    """What one sequence needs from one token to the next.

    finish: why it ended; None while it goes on. error: what its control or sampler raised, which
    ends it as well. caches: they hold all tokens that were given out, but for the last one at the
    limit.
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
    ) -> None:
        """Draw the first token from `logits`, (1, vocab_size), and let the device begin.

        Args:
            limit: tokens to produce at most, 1 or more.
            stop: ids that end the sequence, and are the last one then.
        """
        self.caches = caches
        self.control = control
        self.finish: Literal["stop", "length"] | None = None
        self.error: Exception | None = None
        self._sampler, self._stop = sampler, stop
        self._left = limit
        self._position = caches[0].length  # of the pending token
        self._steer = control.steer() if control else FREE
        self._pending = sampler.draw(logits, self._position, self._steer)
        self._following: Draw | None = None
        dispatch([self._pending])

    @property
    def ended(self) -> bool:
        return self.finish is not None or self.error is not None

    @property
    def at_limit(self) -> bool:
        """Whether the pending token is the last one."""
        return self._left == 1

    @property
    def pending(self) -> Draw:
        return self._pending

    def draw_ahead(self, logits: mx.array) -> None:
        """Build the draw after the pending one, where nothing on the host has a say in it."""
        if self.control is None:
            self._draw(logits)

    def read(self) -> Token:
        """The pending token, as soon as the device has it."""
        token = _read(self._pending, self._steer.forced)
        self._left -= 1
        if token.id in self._stop:
            self.finish = "stop"
        elif self._left == 0:
            self.finish = "length"
        return token

    def observe(self, token: Token) -> None:
        """Let the control look at the token."""
        if self.control is None or self.error:
            return
        try:
            self.control.observe(token.id)
            self._steer = self.control.steer() if self.finish is None else FREE
        except Exception as error:
            self.error = error

    def move_on(self, logits: mx.array) -> None:
        """Make the following token the pending one, drawing it now if that had to wait."""
        if self._following is None and not self.error:
            self._draw(logits)
        if self._following is not None:
            self._pending, self._following = self._following, None
            self._position += 1

    def _draw(self, logits: mx.array) -> None:
        try:
            self._following = self._sampler.draw(logits, self._position + 1, self._steer)
        except Exception as error:
            self.error = error


def advance(model: MagistralModel, rows: Sequence[Row]) -> list[tuple[Token, ...]]:
    """Move each row, none of which has ended, by one pass -> the new tokens of each.

    The graph of the pass is built while the device works on the one before it, and dispatched when
    that one is done: dispatched earlier, appending to the caches would copy them. Where there is
    a control, the logits are dispatched first, and the draws when it has looked at its token; so it
    works while the device does.

    Raises:
        RuntimeError: the device failed, for all rows. What one row alone raises is its `error`.
    """
    going = [row for row in rows if not row.at_limit]
    logits = dict(zip(going, _next_logits(model, going), strict=True))
    for row in going:
        row.draw_ahead(logits[row])
    tokens = [row.read() for row in rows]
    going = [row for row in going if not row.ended]
    if any(row.control for row in going):
        mx.async_eval([logits[row] for row in going])
    for row, token in zip(rows, tokens, strict=True):
        row.observe(token)
    for row in going:
        row.move_on(logits[row])
    dispatch([row.pending for row in going if not row.error])
    return [(token,) for token in tokens]


def _next_logits(model: MagistralModel, rows: Sequence[Row]) -> list[mx.array]:
    """Put the pending tokens into the caches -> for each row (1, vocab_size), still lazy."""
    if not rows:
        return []
    tokens = [row.pending.token for row in rows]
    batch = tokens[0] if len(rows) == 1 else mx.concatenate(tokens)  # (B,)
    h = model(model.embed(batch[:, None]), batch_caches([row.caches for row in rows]))
    logits = model.logits(h)[:, 0]  # (B, vocab_size)
    return [logits[n : n + 1] for n in range(len(rows))] if len(rows) > 1 else [logits]


def _read(draw: Draw, forced: tuple[int, Forced] | None) -> Token:
    why = forced[1] if forced else None
    if draw.logprobs is None:
        return Token(draw.value, forced=why)
    logprob, top = draw.logprobs.read()
    return Token(draw.value, logprob, top, why)
