"""Log-probabilities of sampled and most likely tokens, as OpenAI's API reports them: of the model's
own distribution, before any penalty, mask, temperature or filter.
"""

from __future__ import annotations

from dataclasses import dataclass

from magistral_mlx.backend import mx


@dataclass(frozen=True, slots=True)
class LazyLogprobs:
    """Log-probability of a token, (1,), and ids and log-probabilities of the top k, (k,)."""

    chosen: mx.array
    top_ids: mx.array
    top: mx.array

    def read(self) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Return the token's log-probability, and (id, log-probability) of the top k, the most
        likely first."""
        ids, values = self.top_ids.tolist(), self.top.tolist()
        return float(self.chosen.item()), tuple(zip(ids, values, strict=True))  # type: ignore[arg-type]


def logprobs(logits: mx.array, token: mx.array, top: int) -> LazyLogprobs:
    """Compute natural log-probabilities in float32.

    Args:
        logits: (1, vocab_size), as the model returns them.
        token: (1,) id of the sampled token.
        top: number of most likely tokens to report.
    """
    logits = logits[0].astype(mx.float32)
    values = logits - mx.logsumexp(logits)  # (vocab_size,)
    if top:
        best = mx.argpartition(-values, kth=top - 1)[:top]
        best = best[mx.argsort(-values[best])]
    else:
        best = mx.zeros(0, mx.uint32)
    return LazyLogprobs(values[token], best, values[best])
