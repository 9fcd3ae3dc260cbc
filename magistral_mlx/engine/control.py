"""All that the host decides between one token and the next: thinking, grammar, DRY.

None of it makes the device wait: while it computes the logits of the next token, the host looks
at this one.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.engine.constraint import GrammarMask
from magistral_mlx.engine.dry import Dry, dry_penalties
from magistral_mlx.engine.sampler import DrawConstraints
from magistral_mlx.engine.thinking import ThinkingControl


@dataclass(frozen=True)
class EarlyStops:
    """Stop tokens, and the number of tokens before which none of them may come."""

    tokens: frozenset[int]
    minimum: int


class Control:
    """The parts of one generation's control; each may be None."""

    def __init__(
        self,
        prompt: NDArray[np.int32],
        thinking: ThinkingControl | None = None,
        mask: GrammarMask | None = None,
        dry: Dry | None = None,
        early: EarlyStops | None = None,
    ) -> None:
        self.thinking = thinking
        self.mask = mask
        self._dry = dry
        self._early = early
        self._produced = 0  # tokens
        self._answering = False  # whether a token outside of the trace has come
        self._tokens = np.array(prompt, np.int32) if dry else np.empty(0, np.int32)
        self._length = len(self._tokens)

    def copy(self) -> Control:
        """One that goes its own way from here, to look ahead with."""
        other = copy.copy(self)
        other.thinking = self.thinking.copy() if self.thinking else None
        other.mask = self.mask.copy() if self.mask else None
        other._tokens = self._tokens.copy()
        return other

    def observe(self, token: int) -> None:
        """The token that came."""
        was_inside = self._inside
        self._produced += 1
        if self.thinking:
            self.thinking.observe(token)
        if not was_inside and not self._inside:
            self._answering = True
            if self.mask:
                self.mask.accept(token)
        if self._dry:
            self._remember(token)

    def constraints(self) -> DrawConstraints:
        """Return the constraints of the next token."""
        thinking = self.thinking
        if thinking and thinking.forced:
            return DrawConstraints(forced=thinking.forced)
        bias: dict[int, float] = {}
        if self._dry:
            history = self._tokens[: self._length]
            bias |= {token: -loss for token, loss in dry_penalties(history, self._dry).items()}
        if self._early and self._produced < self._early.minimum:
            bias |= dict.fromkeys(self._early.tokens, -math.inf)
        if thinking:
            bias |= dict.fromkeys(thinking.banned, -math.inf)
            if self.mask and thinking.inside:
                # Only the mark may end the trace, so that the answer is sure to come.
                bias |= dict.fromkeys(thinking.exits, -math.inf)
        return DrawConstraints(allowed=self._allowed(), bias=bias)

    @property
    def _inside(self) -> bool:
        return self.thinking is not None and self.thinking.inside

    def _allowed(self) -> NDArray[np.uint32] | None:
        """The grammar's mask, where the answer is being written; a trace may come before it."""
        if self.mask is None or self._inside:
            return None
        thinking = self.thinking
        if thinking and thinking.may_open and thinking.end is None and not self._answering:
            return self.mask.next(also=thinking.open)
        return self.mask.next()

    def _remember(self, token: int) -> None:
        if self._length == len(self._tokens):
            self._tokens = np.concatenate([self._tokens, np.empty_like(self._tokens)])
        self._tokens[self._length] = token
        self._length += 1
