"""Verification of draft tokens in one pass together with the pending token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from magistral_mlx.backend import mx
from magistral_mlx.engine.penalties import PenaltyState
from magistral_mlx.engine.sampler import UNCONSTRAINED, DrawConstraints, SampledToken, dispatch
from magistral_mlx.engine.sequence import SequenceState, Token
from magistral_mlx.model.magistral import MagistralModel


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A draw that counts if all draft tokens before it are accepted, with the penalty state
    after it."""

    draw: SampledToken
    constraints: DrawConstraints
    penalty_state: PenaltyState | None


def verify(model: MagistralModel, sequence: SequenceState, guesses: list[int]) -> tuple[Token, ...]:
    """Return the pending token and the draft tokens up to the first rejected one.

    Each position is drawn as if the draft tokens before it were accepted, with all constraints, so
    all draws are one graph. Draws after a rejected token are dropped, and the caches are trimmed.
    """
    start = sequence.position
    logits = _logits(model, sequence, guesses)  # (guesses + 1, vocab_size)
    if sequence.control:
        mx.async_eval(logits)  # the device works while the control looks ahead
    given = [sequence.give()]
    sequence.observe(given[0])
    ahead = _look_ahead(sequence, logits, guesses) if not sequence.ended else []
    dispatch([one.draw for one in ahead])
    for n, one in enumerate(ahead):
        sequence.go_to(one.draw, one.constraints)
        sequence.sampler.penalty_state = one.penalty_state
        # The last draw verifies nothing: it is the next pending token if all were accepted.
        if n == len(ahead) - 1 or one.draw.value != guesses[n]:
            break
        given.append(sequence.give())
        sequence.observe(given[-1])
        if sequence.ended:
            break
    sequence.caches.trim(start + len(given))
    sequence.passes += 1
    if sequence.speculator:
        sequence.speculator.learn(len(guesses), len(given) - 1)
    return tuple(given)


def _logits(model: MagistralModel, sequence: SequenceState, guesses: list[int]) -> mx.array:
    """Append the pending token and the draft tokens to the caches -> (drafts + 1, vocab_size)."""
    pending = sequence.pending.token
    tokens = mx.concatenate([pending, mx.array(guesses, pending.dtype)])
    with model.adapters.using([sequence.inputs.adapter]):
        return model.logits(model(model.embed(tokens[None]), sequence.caches))[0]


def _look_ahead(sequence: SequenceState, logits: mx.array, guesses: Sequence[int]) -> list[_Ahead]:
    """Draw the token after the pending one, and after each draft token that may be accepted.

    An exception of the control or the sampler is the sequence's error at the first draw only; at
    later draws it belongs to tokens that may never come.
    """
    control = sequence.control.copy() if sequence.control else None
    ahead: list[_Ahead] = []
    try:
        for n in range(len(logits)):
            constraints = control.constraints() if control else UNCONSTRAINED
            draw = sequence.sampler.draw(logits[n : n + 1], sequence.position + 1 + n, constraints)
            ahead.append(_Ahead(draw, constraints, sequence.sampler.penalty_state))
            if n == len(guesses) or not constraints.allows(guesses[n]):
                break
            if control:
                control.observe(guesses[n])
    except Exception as error:
        if not ahead:
            sequence.fail(error)
    return ahead
