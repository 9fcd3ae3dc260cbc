"""Decoding, token by token, of as many sequences at once as there are: one pass for all of them.

A pass puts the pending token of each sequence into its caches, gives it out, and draws the one
after it. So sequences join and leave between any two passes, and each keeps its own caches,
sampler, control and end.
"""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import mx
from magistral_mlx.cache.batch import batch_caches
from magistral_mlx.engine.sampler import dispatch
from magistral_mlx.engine.sequence import SequenceState, Token
from magistral_mlx.engine.verify import verify
from magistral_mlx.model.magistral import MagistralModel


def decode(model: MagistralModel, sequences: Sequence[SequenceState]) -> list[tuple[Token, ...]]:
    """One pass over the weights for all `sequences` -> the new tokens of each.

    All of their prompts are in their caches. One that has ended gets no tokens; one whose last
    tokens these are has ended afterwards, by its `finish` or its `error`.

    Raises:
        RuntimeError: the device failed. The caches of all of them are of no use any more.
    """
    for sequence in sequences:
        sequence.begin_decoding()
    going = [sequence for sequence in sequences if not sequence.ended]
    given = dict(zip(going, _advance(model, going), strict=True))
    return [given.get(sequence, ()) for sequence in sequences]


def _advance(model: MagistralModel, sequences: Sequence[SequenceState]) -> list[tuple[Token, ...]]:
    """Move each sequence, none of which has ended, by one pass -> the new tokens of each.

    The graph of the pass is built while the device works on the one before it. A deep model's is
    dispatched at once, so that the device need not wait for the host to read the token. Otherwise
    it is dispatched when the one before it is done: earlier, appending to the caches would copy
    them (`MagistralModel.overlaps_passes`). Where there is a control, the logits are dispatched
    first, and the draws when it has looked at its token; so it works while the device does.

    A pass appends tokens that are given out in any case, and its draws change no cache. So of one
    that was dispatched for a sequence that ends meanwhile, nothing is left but the time it takes.
    """
    if len(sequences) == 1 and (guesses := sequences[0].guesses()):
        return [verify(model, sequences[0], guesses)]
    going = [sequence for sequence in sequences if not sequence.at_limit]
    logits = dict(zip(going, _next_logits(model, going), strict=True))
    for sequence in going:
        sequence.draw_ahead(logits[sequence])
    if model.overlaps_passes:
        _dispatch_ahead(going, logits)
    tokens = [sequence.give() for sequence in sequences]
    going = [sequence for sequence in going if not sequence.ended]
    if any(sequence.control for sequence in going):
        mx.async_eval([logits[sequence] for sequence in going])
    for sequence, token in zip(sequences, tokens, strict=True):
        sequence.observe(token)
    for sequence in going:
        sequence.move_on(logits[sequence])
    dispatch([sequence.pending for sequence in going if not sequence.error])
    return [(token,) for token in tokens]


def _dispatch_ahead(going: list[SequenceState], logits: dict[SequenceState, mx.array]) -> None:
    """Start what does not depend on the host: draws, or logits where a control has a say."""
    draws = {sequence: sequence.following for sequence in going}
    undrawn = [logits[sequence] for sequence, draw in draws.items() if draw is None]
    dispatch([draw for draw in draws.values() if draw], undrawn)


def _next_logits(model: MagistralModel, sequences: Sequence[SequenceState]) -> list[mx.array]:
    """Put the pending tokens into the caches -> for each (1, vocab_size), still lazy."""
    if not sequences:
        return []
    tokens = [sequence.pending.token for sequence in sequences]
    batch = tokens[0] if len(sequences) == 1 else mx.concatenate(tokens)  # (B,)
    with model.adapters.using([sequence.inputs.adapter for sequence in sequences]):
        h = model(model.embed(batch[:, None]), batch_caches([one.caches for one in sequences]))
        logits = model.logits(h)[:, 0]  # (B, vocab_size)
    count = len(sequences)
    return [logits[n : n + 1] for n in range(count)] if count > 1 else [logits]
