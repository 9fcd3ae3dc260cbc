"""One sequence in the engine: its caches, and what is drawn of it between two passes.

The file is longer than others because all of a sequence's state changes in it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

from magistral_mlx.backend import mx
from magistral_mlx.engine.constraint import GrammarMask
from magistral_mlx.engine.control import Control, EarlyStops
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.logprobs import PromptLogprobCollector
from magistral_mlx.engine.prefill import ComputedPrefix, prefill_sequence
from magistral_mlx.engine.sampler import (
    UNCONSTRAINED,
    DrawConstraints,
    SampledToken,
    Sampler,
    dispatch,
)
from magistral_mlx.engine.sampling import Sampling
from magistral_mlx.engine.speculate.speculator import Speculator
from magistral_mlx.engine.thinking import ThinkingControl
from magistral_mlx.errors import CheckpointError, InvalidOption
from magistral_mlx.events import Forced, Prefill, ThinkingEnd
from magistral_mlx.model.magistral import MagistralModel
from magistral_mlx.tracebacks import without_frames


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was produced.

    logprob and top, (id, log-probability) of the likeliest, are there if they were asked for.
    forced tells why the engine chose the token itself: to close a trace.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    forced: Forced | None = None


class SequenceState:
    """A sequence from its prompt to its last token.

    Call `prefill` while it is `prefilling`; then `decode`, alone or with others, until it has
    `ended`. While it decodes, one token is drawn and not in the caches yet, the pending one.

    caches: the beginning of prompt and output, as far as `length` says.
    prefilled: for another sequence of the same prompt, once the prompt is in the caches.
    finish: why it ended by itself; None while it goes on. error: an exception of its control or
    sampler, which ends it as well.
    prompt_logprobs: of the prompt, whole once it is prefilled; None unless asked for.
    pending: the token drawn last; position: of it. passes: over the weights since the first token,
    which the prompt's gave.
    """

    sampler: Sampler  # from the first draw on
    pending: SampledToken

    def __init__(
        self, model: MagistralModel, inputs: SequenceInputs, prefix: ComputedPrefix | None = None
    ) -> None:
        """Nothing is computed yet.

        Args:
            prefix: caches of an earlier sequence that began as this prompt does. They are taken
                over: the earlier sequence must have ended. What they cannot be trimmed to exactly
                is computed again.

        Raises:
            InvalidOption: an option that this model's vocabulary does not allow.
        """
        self._vocab_size = vocab_size = model.config.text.vocab_size
        if inputs.logprobs is not None and not 0 <= inputs.logprobs < vocab_size:
            raise InvalidOption(f"logprobs is {inputs.logprobs}; it must be 0 or more tokens.")
        self.inputs = inputs
        self.caches = (
            prefix.caches if prefix else model.make_caches(inputs.scheme, inputs.workspace)
        )
        self.prefilled: ComputedPrefix | None = None
        self.finish: Literal["stop", "length"] | None = None
        self.error: Exception | None = None
        self.control: Control | None = None
        self.speculator: Speculator | None = None
        self.prompt_logprobs: PromptLogprobCollector | None = None
        if inputs.prompt_logprobs is not None:
            self.prompt_logprobs = PromptLogprobCollector(inputs.prompt_logprobs, inputs.head_rows)
        self.position = self.passes = 0
        rules = inputs.thinking
        self._thinking = (
            ThinkingControl(rules, inputs.vocabulary) if rules and rules.enabled else None
        )
        self._mask = GrammarMask(inputs.grammar, vocab_size) if inputs.grammar else None
        self._prefill: Generator[Prefill, int | None, mx.array] | None
        self._prefill = prefill_sequence(model, inputs, self.caches, prefix, self.prompt_logprobs)
        self._prefill_begun = self._decoding = self._closed = False
        self._constraints = UNCONSTRAINED  # of the pending token
        self._following: tuple[SampledToken, DrawConstraints] | None = None
        self._produced = 0  # tokens

    # How it stands

    @property
    def prefilling(self) -> bool:
        """Whether more of the prompt is to go into the caches."""
        return self._prefill is not None

    @property
    def ended(self) -> bool:
        """Whether no pass gives it any more tokens."""
        return self._closed or self.finish is not None or self.error is not None

    @property
    def at_limit(self) -> bool:
        """Whether the pending token is the last one."""
        return self._left == 1

    @property
    def thinking_end(self) -> ThinkingEnd | None:
        """Why the trace ended; None without a trace, or while it is open."""
        return self._thinking.end if self._thinking else None

    @property
    def mask_seconds(self) -> float:
        """Seconds that the grammar has taken on the host."""
        return self._mask.cost.seconds if self._mask else 0.0

    @property
    def masks(self) -> int:
        """Masks that the grammar has computed."""
        return self._mask.cost.masks if self._mask else 0

    @property
    def drafted(self) -> int:
        """Draft tokens that were verified."""
        return self.speculator.drafted if self.speculator else 0

    @property
    def accepted(self) -> int:
        """Draft tokens that were accepted."""
        return self.speculator.accepted if self.speculator else 0

    @property
    def _left(self) -> int:
        return self.inputs.limit - self._produced

    # Its steps

    def prefill(self, most: int | None = None) -> Prefill:
        """Put one chunk of the prompt into the caches -> how far that is.

        The first step tells what the caches hold already, the next ones encode an image each.

        Args:
            most: tokens that the chunk has at most, where the sequence's chunks are larger.

        Raises:
            CheckpointError: no token is asked for, and the logits are not finite.
        """
        assert self._prefill is not None, "the prompt is in the caches already"
        progress = self._prefill.send(most if self._prefill_begun else None)
        self._prefill_begun = True
        if progress.done == progress.total:
            logits = _returned(self._prefill)
            self._prefill = None
            self.prefilled = ComputedPrefix(self.caches, len(self.inputs.tokens), logits)
            if self.inputs.limit == 0 and (error := _not_finite(logits)):  # nothing is decoded
                raise error
        return progress

    def begin_decoding(self) -> None:
        """Draw the first token, if that has not been done, and let the device begin.

        On the thread that decodes, to which lazy arrays belong.
        """
        if self._decoding or self.ended:
            return
        assert self.prefilled and self.prefilled.logits is not None, "prefill comes first"
        self._decoding = True
        inputs = self.inputs
        try:
            self.speculator = self._make_speculator()
            self.sampler = self._make_sampler(inputs.sampling, inputs.logprobs)
            dry = inputs.sampling.dry
            if self._thinking or self._mask or dry or inputs.minimum:
                early = EarlyStops(inputs.stop_tokens, inputs.minimum)
                self.control = Control(inputs.tokens, self._thinking, self._mask, dry, early)
                self._constraints = self.control.constraints()
            self.position = self.caches.length
            self.pending = self.sampler.draw(
                self.prefilled.logits, self.position, self._constraints
            )
            dispatch([self.pending])
        except Exception as error:
            self.fail(error)
        if not self.error:
            self.error = _not_finite(self.prefilled.logits)

    def close(self, unused: int = 0) -> None:
        """Stop here. The caches hold what was given out and stay good to go on from.

        Args:
            unused: tokens to forget, at the end of what the last pass gave.
        """
        if self._prefill is not None:
            self._prefill.close()
            self._prefill = None
        if unused:
            self.caches.trim(len(self.inputs.tokens) + self._produced - unused)
        self._closed = True

    def fail(self, error: Exception) -> None:
        """End with an exception of the control or the sampler, whose frames hold the caches."""
        self.error = without_frames(error)

    # Within a pass

    def guesses(self) -> list[int]:
        """Draft tokens worth verifying together with the pending token; empty where none pays.

        Waits for the pending token only where draft tokens are in sight.
        """
        speculator, most = self.speculator, self._left - 2
        if speculator is None or most < 1 or not speculator.in_sight(most):
            return []
        if self.pending.value in self.inputs.stop_tokens:
            return []
        return speculator.guesses(self.pending.value, most)

    def draw_ahead(self, logits: mx.array) -> None:
        """Build the draw after the pending one, where nothing on the host has a say in it."""
        if self.control is None:
            self._draw(logits)

    @property
    def following(self) -> SampledToken | None:
        """The draw after the pending one, if it has been built."""
        return self._following[0] if self._following else None

    def give(self) -> Token:
        """The pending token, as soon as the device has it."""
        forced = self._constraints.forced
        token = _token(self.pending, forced[1] if forced else None)
        self._produced += 1
        if token.id in self.inputs.stop_tokens:
            self.finish = "stop"
        elif self._left == 0:
            self.finish = "length"
        if self.speculator:
            self.speculator.observe(token.id)
        return token

    def observe(self, token: Token) -> None:
        """Let the control look at the token."""
        if self.control is None or self.error:
            return
        try:
            self.control.observe(token.id)
        except Exception as error:
            self.fail(error)

    def move_on(self, logits: mx.array) -> None:
        """Make the following token the pending one, drawing it now if that had to wait."""
        if self._following is None and not self.error:
            self._draw(logits)
        if self._following is not None:
            self.go_to(*self._following)
            self.passes += 1

    def go_to(self, draw: SampledToken, constraints: DrawConstraints) -> None:
        """Make `draw` the pending token."""
        self.pending, self._constraints, self._following = draw, constraints, None
        self.position += 1

    def _draw(self, logits: mx.array) -> None:
        try:
            constraints = self.control.constraints() if self.control else UNCONSTRAINED
            self._following = self.sampler.draw(logits, self.position + 1, constraints), constraints
        except Exception as error:
            self.fail(error)

    def _make_sampler(self, sampling: Sampling, top_logprobs: int | None) -> Sampler:
        rules = self.inputs.thinking
        banned = () if rules is None or rules.enabled else (rules.open, rules.close)
        return Sampler(
            sampling,
            self.inputs.tokens,
            self._vocab_size,
            top_logprobs=top_logprobs,
            banned=frozenset(banned),
        )

    def _make_speculator(self) -> Speculator | None:
        inputs = self.inputs
        if inputs.speculation is None:
            return None
        # A draft model draws as the sequence does, but for what depends on earlier tokens.
        sampler = self._make_sampler(inputs.sampling.without_penalties(), None)
        return Speculator(inputs.speculation, inputs.tokens.tolist(), inputs.scheme, sampler)


def _token(draw: SampledToken, forced: Forced | None) -> Token:
    if draw.logprobs is None:
        return Token(draw.value, forced=forced)
    logprob, top = draw.logprobs.read()
    return Token(draw.value, logprob, top, forced)


def _returned(steps: Generator[Prefill, int | None, mx.array]) -> mx.array:
    """Return the value that the generator `steps` returns at its end."""
    try:
        next(steps)
    except StopIteration as end:
        return end.value
    raise AssertionError("a prompt goes on after its last token")


def _not_finite(logits: mx.array) -> CheckpointError | None:
    """Return the error of logits that hold NaNs or infinities."""
    if mx.all(mx.isfinite(logits)).item():
        return None
    return CheckpointError(
        "the model's first logits are not finite: its weights hold NaNs or infinities. "
        "Fetch or convert the model again."
    )
