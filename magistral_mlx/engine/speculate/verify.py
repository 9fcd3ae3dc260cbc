"""Verification of draft tokens in one pass together with the pending token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from magistral_mlx.backend import mx
from magistral_mlx.engine.penalties import PenaltyState
from magistral_mlx.engine.row import Row, Token
from magistral_mlx.engine.sampler import UNCONSTRAINED, DrawConstraints, SampledToken, dispatch
from magistral_mlx.model.magistral import MagistralModel


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A draw that counts if all draft tokens before it are accepted, with the penalty state
    after it."""

    draw: SampledToken
    constraints: DrawConstraints
    penalty_state: PenaltyState | None


def verify(model: MagistralModel, row: Row, guesses: list[int]) -> tuple[Token, ...]:
    """Return the pending token and the draft tokens up to the first rejected one.

    Each position is drawn as if the draft tokens before it were accepted, with all constraints, so
    all draws are one graph. Draws after a rejected token are dropped, and the caches are trimmed.
    """
    start = row.position
    logits = _logits(model, row, guesses)  # (guesses + 1, vocab_size)
    if row.control:
        mx.async_eval(logits)  # the device works while the control looks ahead
    given = [row.give()]
    row.observe(given[0])
    ahead = _look_ahead(row, logits, guesses) if not row.ended else []
    dispatch([one.draw for one in ahead])
    for n, one in enumerate(ahead):
        row.go_to(one.draw, one.constraints)
        row.sampler.penalty_state = one.penalty_state
        # The last draw verifies nothing: it is the next pending token if all were accepted.
        if n == len(ahead) - 1 or one.draw.value != guesses[n]:
            break
        given.append(row.give())
        row.observe(given[-1])
        if row.ended:
            break
    for cache in row.caches:
        cache.trim(start + len(given))
    row.passes += 1
    if row.speculator:
        row.speculator.learn(len(guesses), len(given) - 1)
    return tuple(given)


def _logits(model: MagistralModel, row: Row, guesses: list[int]) -> mx.array:
    """Append the pending token and the draft tokens to the caches -> (drafts + 1, vocab_size)."""
    pending = row.pending.token
    tokens = mx.concatenate([pending, mx.array(guesses, pending.dtype)])
    return model.logits(model(model.embed(tokens[None]), row.caches))[0]


def _look_ahead(row: Row, logits: mx.array, guesses: Sequence[int]) -> list[_Ahead]:
    """Draw the token after the pending one, and after each draft token that may be accepted.

    An exception of the control or the sampler is the row's error at the first draw only; at later
    draws it belongs to tokens that may never come.
    """
    control = row.control.copy() if row.control else None
    ahead: list[_Ahead] = []
    try:
        for n in range(len(logits)):
            constraints = control.constraints() if control else UNCONSTRAINED
            draw = row.sampler.draw(logits[n : n + 1], row.position + 1 + n, constraints)
            ahead.append(_Ahead(draw, constraints, row.sampler.penalty_state))
            if n == len(guesses) or not constraints.allows(guesses[n]):
                break
            if control:
                control.observe(guesses[n])
    except Exception as error:
        if not ahead:
            row.error = error
    return ahead
