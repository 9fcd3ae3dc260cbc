"""Token by token, for as many sequences at once as there are: one pass over the weights a token.

A sequence is a row. Between two passes it has one token that is drawn and not yet in its caches,
the pending one; a pass puts it there, gives it out, and draws the one after it. So rows join and
leave between any two passes, and each keeps its own caches, sampler, control and end.
"""

from __future__ import annotations

from collections.abc import Sequence

from magistral_mlx.backend import mx
from magistral_mlx.cache.batch import batch_caches
from magistral_mlx.engine.row import Row, Token
from magistral_mlx.engine.sampler import dispatch
from magistral_mlx.engine.speculate.verify import verify
from magistral_mlx.model.magistral import MagistralModel


def advance(model: MagistralModel, rows: Sequence[Row]) -> list[tuple[Token, ...]]:
    """Move each row, none of which has ended, by one pass -> the new tokens of each.

    The graph of the pass is built while the device works on the one before it, and dispatched when
    that one is done: dispatched earlier, appending to the caches would copy them. Where there is
    a control, the logits are dispatched first, and the draws when it has looked at its token; so it
    works while the device does.

    Raises:
        RuntimeError: the device failed, for all rows. What one row alone raises is its `error`.
    """
    if len(rows) == 1 and (guesses := rows[0].guesses()):
        return [verify(model, rows[0], guesses)]
    going = [row for row in rows if not row.at_limit]
    logits = dict(zip(going, _next_logits(model, going), strict=True))
    for row in going:
        row.draw_ahead(logits[row])
    tokens = [row.give() for row in rows]
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
