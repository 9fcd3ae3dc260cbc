"""Sampling of the next token from logits.

Steps: grammar mask and bans, biases and penalties, temperature, filters. Then noise that depends on
seed and position alone is added, and the largest value wins (Gumbel-max: a draw from the softmax).
So the next token is a function of its logits, and the same seed gives the same tokens however the
logits were computed: in chunks, from a cache, speculatively or in a batch. In bfloat16 and float16
that holds up to near ties of logits, since kernels that depend on the number of rows round them
otherwise (`docs/architecture.md`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.backend import mx
from magistral_mlx.engine.filters import keep_likely
from magistral_mlx.engine.logprobs import LazyLogprobs, logprobs
from magistral_mlx.engine.penalties import Penalties, PenaltyState
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.events import Forced


@dataclass(frozen=True)
class DrawConstraints:
    """Constraints on one draw, in addition to the sampling options.

    forced: the token to take, with the reason. allowed: bitmask of the ids that may be drawn,
    lowest bit first in each word. bias: values added to the logits of these ids; may be -inf.
    """

    forced: tuple[int, Forced] | None = None
    allowed: NDArray[np.uint32] | None = None
    bias: Mapping[int, float] = field(default_factory=dict)

    def allows(self, token: int) -> bool:
        """Whether `token` may be drawn."""
        if self.forced:
            return self.forced[0] == token
        if self.allowed is not None and not self.allowed[token // 32] >> token % 32 & 1:
            return False
        return self.bias.get(token, 0) > -math.inf


UNCONSTRAINED = DrawConstraints()


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sampled token, (1,), still lazy, with its log-probabilities if requested."""

    token: mx.array
    logprobs: LazyLogprobs | None

    @property
    def value(self) -> int:
        """The token's id; waits for the device."""
        return cast(int, self.token.item())


def dispatch(draws: Sequence[SampledToken], others: Sequence[mx.array] = ()) -> None:
    """Start the computation of all of `draws`, and of `others`, on the device."""
    arrays = [*others, *(draw.token for draw in draws)]
    for draw in draws:
        if draw.logprobs:
            arrays += [draw.logprobs.chosen, draw.logprobs.top_ids, draw.logprobs.top]
    mx.async_eval(arrays)


class Sampler:
    """Sampling state of one generation."""

    def __init__(
        self,
        sampling: Sampling,
        prompt: NDArray[np.int32],
        vocab_size: int,
        *,
        top_logprobs: int | None = None,
        banned: frozenset[int] = frozenset(),
    ) -> None:
        """Create the sampler on the thread that will draw.

        Args:
            prompt: (L,) ids, for the repetition penalty.
            top_logprobs: number of most likely tokens to report; None for no log-probabilities.
            banned: ids that are never drawn.
        """
        self._sampling = sampling
        self._top_logprobs = top_logprobs
        self._penalties = Penalties(sampling, prompt, vocab_size) if sampling.penalises else None
        bias = {**sampling.logit_bias, **dict.fromkeys(banned, -math.inf)}
        self._bias = _pairs(bias) if bias else None
        self._bits = mx.arange(32, dtype=mx.uint32)

    def draw(
        self, logits: mx.array, position: int, constraints: DrawConstraints = UNCONSTRAINED
    ) -> SampledToken:
        """Draw the token at `position` of the sequence from its logits, (1, vocab_size)."""
        if constraints.forced is None:
            token = self._choose(logits, position, constraints)
        else:
            token = mx.array([constraints.forced[0]], mx.uint32)
        if self._penalties:
            self._penalties.add(token)
        if self._top_logprobs is None:
            return SampledToken(token, None)
        return SampledToken(token, logprobs(logits, token, self._top_logprobs))

    @property
    def penalty_state(self) -> PenaltyState | None:
        """Penalty state; assign to roll back."""
        return self._penalties.state if self._penalties else None

    @penalty_state.setter
    def penalty_state(self, state: PenaltyState | None) -> None:
        if self._penalties and state:
            self._penalties.state = state

    def _choose(self, logits: mx.array, position: int, constraints: DrawConstraints) -> mx.array:
        sampling = self._sampling
        logits = self._adjust(logits, constraints)
        if sampling.temperature == 0:
            return mx.argmax(logits, axis=-1)
        logits = keep_likely(
            logits.astype(mx.float32) / sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
        )
        key = mx.random.key(sampling.seed << 32 | position)
        return mx.argmax(logits + mx.random.gumbel(logits.shape, key=key), axis=-1)

    def _adjust(self, logits: mx.array, constraints: DrawConstraints) -> mx.array:
        """Apply mask, biases and penalties, as far as there are any."""
        if constraints.allowed is not None:
            logits = mx.where(self._unpack(constraints.allowed, logits.shape[-1]), logits, -mx.inf)
        if self._bias or self._penalties or constraints.bias:
            logits = logits.astype(mx.float32)
        if self._penalties:
            logits = self._penalties.apply(logits)
        for pairs in (self._bias, _pairs(constraints.bias) if constraints.bias else None):
            if pairs:
                ids, values = pairs
                logits = logits.at[:, ids].add(values)
        return logits

    def _unpack(self, allowed: NDArray[np.uint32], vocab_size: int) -> mx.array:
        """(words,) bitmask -> (1, vocab_size) bool, unpacked on the device."""
        words = mx.array(allowed)
        bits = (words[:, None] >> self._bits) & 1  # (words, 32)
        return bits.reshape(1, -1)[:, :vocab_size].astype(mx.bool_)


def _pairs(bias: Mapping[int, float]) -> tuple[mx.array, mx.array]:
    """Ids, (n,), and the values added to their logits, (n,) float32."""
    return mx.array(list(bias.keys()), mx.int32), mx.array(list(bias.values()), mx.float32)
