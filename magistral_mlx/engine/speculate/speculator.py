"""Draft tokens for one sequence: their source, and how many of them pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from magistral_mlx.backend import backend
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.engine.speculate.costs import (
    LONG_CONTEXT,
    PLAIN,
    WORTH_IT,
    DraftChoice,
    PassCosts,
    choose,
)
from magistral_mlx.engine.speculate.drafter import Drafter
from magistral_mlx.engine.speculate.ngram import Acceptance, Suffixes

_MANY = 64  # tokens from which they are indexed at once, without learning acceptance rates
_DRAFT_CHANCE = 0.7  # initial acceptance rate of a draft model's tokens
_DRAFT_WEIGHT = 1 / 32  # weight of the newest token in the running mean
_RETRY = 64  # tokens after which a draft model that did not pay is tried again
_TRIAL = 3  # draft tokens of such a trial
# Queries up to which attention on a GPU takes its vector kernel, or packed keys and values as they
# are stored. With more, a layer of Magistral over 32k tokens was seen to take 3.6 ms instead of 1.3
# (MLX issue 3826; `ScaledDotProductAttention::eval_gpu` in
# mlx/backend/metal/scaled_dot_product_attention.cpp, line 812 of commit 846d176).
_VECTOR_ROWS = 8


@dataclass(frozen=True, eq=False)
class Speculation:
    """Options of speculative decoding: pass costs and the sources of draft tokens.

    ngrams: draft from prompt and output. drafter: a draft model.
    """

    costs: PassCosts
    ngrams: bool = True
    drafter: Drafter | None = None


class Speculator:
    """Drafting state of one sequence.

    Only a sequence that decodes alone gets draft tokens. The sequences of a batch share each pass
    over the weights already, and with draft tokens a pass would soon have more rows than pay.

    drafted, accepted: numbers of draft tokens that were verified, and that were accepted.
    """

    def __init__(
        self,
        speculation: Speculation,
        prompt: Sequence[int],
        scheme: KVScheme,
        sampler: Sampler,
    ) -> None:
        """Index the prompt. `sampler` draws from a draft model's logits."""
        self.drafted = self.accepted = 0
        short, long = speculation.costs, speculation.costs.at_long_context()
        if backend().fused_attention:
            long = long.up_to(_VECTOR_ROWS)
            # With more rows the whole quantized cache would be dequantized in each pass.
            short = short.up_to(_VECTOR_ROWS) if scheme.quantized else short
        self._short_costs, self._long_costs = short, long
        self._ngrams, self._drafter = speculation.ngrams, speculation.drafter
        self._slack = scheme.slack
        self._sampler = sampler
        self._suffixes = Suffixes()
        self._acceptance = Acceptance()
        self._unread = list(prompt)  # tokens that are not in the index yet
        self._given = 0
        self._pending_is_read = False
        self._draft_ready = False  # whether it has read all but the newest tokens
        self._drafting = False  # whether the newest guesses are the draft model's
        self._draft_chance = _DRAFT_CHANCE
        self._drafted_at = 0

    @property
    def _costs(self) -> PassCosts:
        """The costs at the present context."""
        long = len(self._suffixes.tokens) >= LONG_CONTEXT
        return self._long_costs if long else self._short_costs

    @property
    def _most(self) -> int:
        """Largest number of draft tokens: rejected ones must be trimmed from a quantized cache
        exactly."""
        return min(self._costs.most_rows - 1, self._slack)

    def observe(self, token: int) -> None:
        """Record a token of the output."""
        self._given += 1
        if self._pending_is_read:
            self._pending_is_read = False
        else:
            self._unread.append(token)

    def in_sight(self, most: int) -> bool:
        """Whether up to `most` draft tokens may pay after the pending token, still unknown."""
        if not self._given:
            return False  # the first token must not wait for the index
        self._read()
        most = min(most, self._most)
        self._draft_ready = (
            self._drafter is not None
            and self._draft_choice(most).guesses > 0
            and self._drafter.ready(self._suffixes.tokens)
        )
        return self._draft_ready or self._ngram_choice(self._suffixes.length + 1, most).guesses > 0

    def guesses(self, pending: int, most: int) -> list[int]:
        """Return up to `most` draft tokens after `pending`, as many as pay, perhaps none."""
        self._unread.append(pending)
        self._read()
        self._pending_is_read = True
        most = min(most, self._most)
        copied = self._ngram_choice(self._suffixes.length, most)
        drafted = self._draft_choice(most) if self._draft_ready else PLAIN
        self._drafting = drafted.gain > copied.gain
        if self._drafting and self._drafter:
            self._drafted_at = self._given
            return self._drafter.guess(self._suffixes.tokens, self._sampler, drafted.guesses)
        return self._suffixes.guess(copied.guesses)

    def learn(self, checked: int, right: int) -> None:
        """Record that of `checked` draft tokens the first `right` were accepted."""
        self.drafted += checked
        self.accepted += right
        if self._drafting:
            for n in range(min(checked, right + 1)):
                self._draft_chance += _DRAFT_WEIGHT * ((n < right) - self._draft_chance)

    def _read(self) -> None:
        """Bring the index up to date."""
        unread, self._unread = self._unread, []
        suffixes = self._suffixes
        if len(unread) > _MANY:
            suffixes.extend(unread)
            return
        for token in unread:
            if suffixes.length:
                self._acceptance.learn(suffixes.length, suffixes.expected == token)
            suffixes.add(token)

    def _ngram_choice(self, length: int, most: int) -> DraftChoice:
        """Choose the number of n-gram draft tokens after a match of `length` tokens."""
        if not self._ngrams or not length:
            return PLAIN
        return choose(self._acceptance.chances(length, most), self._costs)

    def _draft_choice(self, most: int) -> DraftChoice:
        if self._drafter is None:
            return PLAIN
        choice = choose([self._draft_chance] * most, self._costs, self._drafter.cost)
        if choice is PLAIN and most > 0 and self._given - self._drafted_at >= _RETRY:
            return DraftChoice(min(_TRIAL, most), WORTH_IT)
        return choice
