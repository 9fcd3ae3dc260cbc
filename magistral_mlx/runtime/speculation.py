"""Speculation of a loaded model: the option of a request, and its draft model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from magistral_mlx.cache.scheme import RESERVED
from magistral_mlx.chat.tokenizer import Tokenizer
from magistral_mlx.checkpoint.load import load_model
from magistral_mlx.engine.speculate.drafter import Drafter
from magistral_mlx.engine.speculate.measured import pass_costs
from magistral_mlx.engine.speculate.speculator import Speculation
from magistral_mlx.errors import TokenizerError
from magistral_mlx.hub import find_tokenizer

if TYPE_CHECKING:
    from magistral_mlx.checkpoint.folder import Checkpoint
    from magistral_mlx.memory.plan import Plan
    from magistral_mlx.model.magistral import MagistralModel
    from magistral_mlx.runtime.generation_request import SpeculationOption


class SpeculationPolicy:
    """Sources of guesses that a loaded model has. Lives on its worker thread."""

    def __init__(self, plan: Plan, drafter: Drafter | None = None) -> None:
        self._costs = pass_costs(plan.machine.name, plan.model.weights.decoder)
        self._drafter = drafter

    def speculation(self, option: SpeculationOption) -> Speculation | None:
        """The sources that an option allows; None for plain decoding.

        "draft" without a draft model has been refused before the request was queued.
        """
        if option == "off":
            return None
        drafter = None if option == "ngram" else self._drafter
        return Speculation(self._costs, ngrams=option != "draft", drafter=drafter)


def load_drafter(
    draft: Checkpoint, model: MagistralModel, plan: Plan, report: Callable[[int, int], None]
) -> Drafter:
    """Load a draft model in the precision of `model`. Raises what `load_model` raises."""
    assert plan.model.draft is not None, "it was planned for"
    small = load_model(draft, model.dtype, report)
    caches = small.make_caches(plan.scheme, plan.profile.workspace)
    caches.reserve(RESERVED, plan.context)
    # A pass of either reads all of its weights.
    cost = plan.model.draft.decoder / plan.model.weights.decoder
    return Drafter(small, caches, cost, plan.chunk)


def check_vocabulary(draft: Checkpoint, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Refuse a draft model whose tokens are not those of the model that it would guess for.

    Raises:
        TokenizerError: naming what differs.
    """
    what = f"the draft model in {draft.folder} cannot guess for the one in {checkpoint.folder}"
    advice = "Name one of the same family, with the same tekken.json."
    sizes = draft.config.text.vocab_size, checkpoint.config.text.vocab_size
    if sizes[0] != sizes[1]:
        raise TokenizerError(f"{what}: it has {sizes[0]:,} tokens, not {sizes[1]:,}. {advice}")
    other = Tokenizer.load(find_tokenizer(draft.folder, None))
    # Control tokens may be named otherwise: a family adds to them from model to model.
    for token in range(max(tokenizer.vocab_size, other.vocab_size)):
        ours, theirs = tokenizer.token_bytes(token), other.token_bytes(token)
        if ours != theirs:
            raise TokenizerError(f"{what}: its token {token} is {theirs!r}, not {ours!r}. {advice}")
