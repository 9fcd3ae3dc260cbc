"""How far loading or reading a prompt has come, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from magistral_mlx.events import Prefill

if TYPE_CHECKING:
    from magistral_mlx.config import TextConfig


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Progress of a load: `done` of `total` bytes after `seconds` of this stage.

    stage: "download" fetches the model from the hub, "weights" reads it into memory.
    """

    stage: Literal["download", "weights"]
    done: int
    total: int
    seconds: float

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None before there is anything to estimate from."""
        return self.seconds * (self.total - self.done) / self.done if self.done else None


OnProgress = Callable[[LoadProgress], None]


class PrefillClock:
    """Adds the seconds that are left to the progress through a prompt.

    A token costs the more, the more stand before it, so the time is shared out by arithmetic: two
    operations for each weight and token, and four for each pair of tokens, dimension, head and
    layer, half of which the causal mask leaves out.
    """

    def __init__(self, text: TextConfig, clock: Callable[[], float] = time.perf_counter) -> None:
        attention = text.num_attention_heads * text.head_dim
        kv = text.num_key_value_heads * text.head_dim
        layer = text.hidden_size * (2 * attention + 2 * kv + 3 * text.intermediate_size)
        self._a_token = 2 * text.num_hidden_layers * layer
        self._a_pair = 2 * text.num_hidden_layers * attention
        self._clock = clock
        self._start = clock()
        self._first: int | None = None

    def __call__(self, event: Prefill) -> Prefill:
        """The event with its estimate."""
        if self._first is None:
            self._first = event.done
            self._start = self._clock()
        spent = self._cost(event.done) - self._cost(self._first)
        if spent <= 0:
            return event
        left = self._cost(event.total) - self._cost(event.done)
        seconds = (self._clock() - self._start) * left / spent
        return Prefill(event.done, event.total, seconds)

    def _cost(self, tokens: int) -> float:
        return self._a_token * tokens + self._a_pair * tokens**2
