"""Generation of one sequence by itself, for benchmarks and tests: a loop over its steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from magistral_mlx.engine.decode import decode
from magistral_mlx.engine.inputs import SequenceInputs
from magistral_mlx.engine.prefill import ComputedPrefix
from magistral_mlx.engine.sequence import SequenceState, Token
from magistral_mlx.events import Prefill
from magistral_mlx.model.magistral import MagistralModel


class Generation(SequenceState, Iterator[Prefill | Token]):
    """A sequence to iterate over: progress through the prompt, then tokens, until its end."""

    def __init__(
        self, model: MagistralModel, inputs: SequenceInputs, prefix: ComputedPrefix | None = None
    ) -> None:
        """See `SequenceState`."""
        super().__init__(model, inputs, prefix)
        self._model = model
        self._ready: deque[Token] = deque()  # of the last pass, not given out yet

    def __next__(self) -> Prefill | Token:
        """The next progress or token.

        Raises:
            MagistralError: an error of the grammar or the sampler.
        """
        if self.prefilling:
            return self.prefill()
        if not self._ready:
            self._ready.extend(*decode(self._model, [self]))
        if self._ready:
            return self._ready.popleft()
        if self.error and not self._closed:
            self.close()
            raise self.error
        raise StopIteration

    def close(self, unused: int = 0) -> None:
        """Stop here, forgetting the tokens that were not given out."""
        unused += len(self._ready)
        self._ready.clear()
        super().close(unused)
