"""One token after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from magistral_mlx.backend import mx
from magistral_mlx.cache.kv import KVCache
from magistral_mlx.engine.control import Control
from magistral_mlx.engine.sampler import FREE, Draw, Sampler, Steer
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


def decode(
    model: MagistralModel,
    caches: Sequence[KVCache],
    logits: mx.array,
    sampler: Sampler,
    limit: int,
    *,
    stop: frozenset[int] = frozenset(),
    control: Control | None = None,
) -> Iterator[Token]:
    """Yield up to `limit` tokens, the first drawn from `logits`, (1, vocab_size).

    The last one is the first of `stop`. The graph of the next step is built while the device works
    on this one, and dispatched when this one is done: dispatched earlier, appending to the caches
    would copy them. With a control, the logits of the next step are dispatched first, and the draw
    when the control has looked at this token; so it works while the device does.

    The caches hold all tokens that were yielded, but for the last one at the limit.
    """
    position = caches[0].length
    steer = control.steer() if control else FREE
    draw = sampler.draw(logits, position, steer)
    draw.dispatch()
    for n in range(1, limit + 1):
        following = None
        if n < limit:
            h = model(model.embed(draw.token[None]), caches)
            logits = model.logits(h)[:, 0]
            if control is None:
                following = sampler.draw(logits, position + n)
        value = cast(int, draw.token.item())
        token = _read(draw, value, steer)
        last = n == limit or value in stop
        if control:
            if not last:
                mx.async_eval(logits)
            control.observe(value)
            if not last:
                steer = control.steer()
                following = sampler.draw(logits, position + n, steer)
        if following is not None and not last:
            following.dispatch()
        yield token
        if following is None or last:
            return
        draw = following


def _read(draw: Draw, value: int, steer: Steer) -> Token:
    forced = steer.forced[1] if steer.forced else None
    if draw.logprobs is None:
        return Token(value, forced=forced)
    logprob, top = draw.logprobs.read()
    return Token(value, logprob, top, forced)
