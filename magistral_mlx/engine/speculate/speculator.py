"""The guesses for one sequence: where they come from, and how many pay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from magistral_mlx.backend import backend
from magistral_mlx.cache.scheme import KVScheme
from magistral_mlx.engine.sampler import Sampler
from magistral_mlx.engine.speculate.costs import PLAIN, WORTH_IT, DraftChoice, PassCosts, choose
from magistral_mlx.engine.speculate.drafter import Drafter
from magistral_mlx.engine.speculate.ngram import Acceptance, Suffixes

_MANY = 64  # tokens; more of them go into the index without being compared with what it expected
_DRAFT_CHANCE = 0.7  # that a draft model's guess is right, to begin with
_DRAFT_WEIGHT = 1 / 32  # of the newest one in the running mean
_RETRY = 64  # tokens after which a draft model that did not pay is tried again
_TRIAL = 3  # guesses then
_PACKED_ROWS = 8  # that attention takes with packed keys and values as they are


@dataclass(frozen=True, eq=False)
class Speculation:
    """What checking guesses costs, and where they may come from.

    ngrams: from prompt and output. drafter: from a draft model.
    """

    costs: PassCosts
    ngrams: bool = True
    drafter: Drafter | None = None


class Speculator:
    """What is known of one sequence that helps to guess how it goes on.

    Only a row that decodes alone is asked for guesses. The rows of a batch share each pass over the
    weights already, and with guesses for all of them it would soon have more rows than are cheap.

    drafted, accepted: guesses that were checked, and those of them that were right.
    """

    def __init__(
        self,
        speculation: Speculation,
        prompt: Sequence[int],
        scheme: KVScheme,
        sampler: Sampler,
    ) -> None:
        """`scheme`: of the caches. `sampler`: draws from a draft model's logits."""
        self.drafted = self.accepted = 0
        # With more rows a GPU would dequantize all of a quantized cache for each pass.
        packed = scheme.quantized and backend().fused_attention
        self._costs = speculation.costs.up_to(_PACKED_ROWS) if packed else speculation.costs
        self._ngrams, self._drafter = speculation.ngrams, speculation.drafter
        # A wrong guess is to leave no trace in a quantized cache.
        self._most = min(self._costs.most_rows - 1, scheme.slack)
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

    def observe(self, token: int) -> None:
        """The token that was given out."""
        self._given += 1
        if self._pending_is_read:
            self._pending_is_read = False
        else:
            self._unread.append(token)

    def in_sight(self, most: int) -> bool:
        """Whether up to `most` guesses may pay after the pending token, not known here yet."""
        if not self._given:
            return False  # the first token is not to wait for the index
        self._read()
        most = min(most, self._most)
        self._draft_ready = (
            self._drafter is not None
            and self._draft_choice(most).guesses > 0
            and self._drafter.ready(self._suffixes.tokens)
        )
        return self._draft_ready or self._ngram_choice(self._suffixes.length + 1, most).guesses > 0

    def guesses(self, pending: int, most: int) -> list[int]:
        """Up to `most` tokens that may follow `pending`.

        As many as pay; none where plain decoding is as good.
        """
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
        """How many of the newest guesses were checked, and how many of these, the first ones, were
        right."""
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
        """What guesses after a match of `length` tokens are worth."""
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
