"""How a model is divided over ranks: the processes that compute one model together.

tensor      every rank holds a part of each matrix and of the attention heads of all layers
pipeline    every rank holds some consecutive layers

The embedding, the final norm, the head and the vision tower are on rank 0 in both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.errors import InvalidOption

SplitKind = Literal["tensor", "pipeline"]


@dataclass(frozen=True)
class Split:
    """The part of a model that one rank holds.

    shares: of a pipeline, the numbers of layers of all ranks; none for equal ones.
    """

    kind: SplitKind = "tensor"
    rank: int = 0
    size: int = 1
    shares: tuple[int, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the rank holds all of the model."""
        return self.size == 1

    @property
    def has_ends(self) -> bool:
        """Whether the rank holds embedding, head and vision tower."""
        return self.rank == 0

    def layers(self, count: int) -> range:
        """Return the layers, of `count`, that the rank holds."""
        if self.kind == "tensor":
            return range(count)
        shares = self.shares or equal_shares(count, self.size)
        start = sum(shares[: self.rank])
        return range(start, start + shares[self.rank])

    def cut(self, length: int) -> slice:
        """Return the rank's part of an axis of a tensor that is divided."""
        part = length // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


WHOLE = Split()


def equal_shares(count: int, size: int) -> tuple[int, ...]:
    """Divide `count` layers; rank 0, which has the embedding and the head, gets no more than the
    others."""
    least, more = divmod(count, size)
    return tuple(least + (rank >= size - more) for rank in range(size))


def check_split(config: ModelConfig, split: Split) -> None:
    """Check that a model can be divided like this.

    Raises:
        InvalidOption: it cannot; says what could.
    """
    text = config.text
    if split.kind == "pipeline":
        shares = split.shares or equal_shares(text.num_hidden_layers, split.size)
        if min(shares) < 1 or len(shares) != split.size or sum(shares) != text.num_hidden_layers:
            raise InvalidOption(
                f"{text.num_hidden_layers} layers cannot be divided over {split.size} machines as "
                f"{', '.join(map(str, shares))}; give each at least one layer."
            )
        return
    if problem := _undivided(text, split.size):
        fitting = [n for n in range(2, text.num_key_value_heads + 1) if not _undivided(text, n)]
        ways = f"use {' or '.join(map(str, fitting))} machines, or " if fitting else "use "
        raise InvalidOption(
            f"the model cannot be divided into {split.size} parts by heads: {problem}; {ways}"
            "the split pipeline, which divides it by layers."
        )


def divided_config(config: ModelConfig, split: Split) -> ModelConfig:
    """Return the configuration of the rank's part, which computes as a smaller model would.

    Raises:
        InvalidOption: the model cannot be divided like this.
    """
    if split.whole:
        return config
    check_split(config, split)
    text = config.text
    if split.kind == "pipeline":
        text = replace(text, num_hidden_layers=len(split.layers(text.num_hidden_layers)))
    else:
        text = replace(
            text,
            num_attention_heads=text.num_attention_heads // split.size,
            num_key_value_heads=text.num_key_value_heads // split.size,
            intermediate_size=text.intermediate_size // split.size,
        )
    divided = replace(config, text=text)
    return divided if split.has_ends else divided.without_vision()


def _undivided(text: TextConfig, size: int) -> str | None:
    counts = {
        "key-value heads": text.num_key_value_heads,
        "attention heads": text.num_attention_heads,
        "columns of its MLP": text.intermediate_size,
    }
    for what, count in counts.items():
        if count % size:
            return f"it has {count} {what}"
    return None
