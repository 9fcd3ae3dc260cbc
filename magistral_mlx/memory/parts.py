"""Parts of a model that is split over machines: the layers, widths and bytes that each rank holds.

Tensor parallel: each rank has all layers and its share of the heads, of the MLP's width and of the
KV cache. Pipeline parallel: each rank has some of the layers whole. Embedding, output head, final
norm and vision tower lie on rank 0 in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.peak import Weights, sum_weights

Split = Literal["tensor", "pipeline"]
_LAYER = re.compile(r"language_model\.model\.layers\.(\d+)\.(.+)")
_WHOLE = ("input_layernorm.", "post_attention_layernorm.")  # of a layer, on every rank
_GROUP = 64  # columns that share a scale, and are never cut


@dataclass(frozen=True)
class PlannedPart:
    """What one rank holds.

    layers: those of the decoder, all of them where the split is tensor parallel.
    """

    split: Split
    rank: int
    ranks: int
    layers: range

    def config(self, model: ModelConfig) -> ModelConfig:
        """The configuration of a model of the part's size, as a plan of memory needs it."""
        text = replace(model.text, num_hidden_layers=len(self.layers))
        if self.split == "tensor":
            text = replace(
                text,
                num_attention_heads=text.num_attention_heads // self.ranks,
                num_key_value_heads=text.num_key_value_heads // self.ranks,
                intermediate_size=text.intermediate_size // self.ranks,
            )
        return replace(model, text=text, vision=model.vision if self.rank == 0 else None)

    def weights(self, sizes: Mapping[str, int], model: ModelConfig) -> Weights:
        """Bytes of the part's weights. sizes: of all tensors, by canonical name."""
        held = {name: self._bytes(name, size) for name, size in sizes.items()}
        return sum_weights({name: size for name, size in held.items() if size}, model)

    def _bytes(self, name: str, size: int) -> int:
        layer = _LAYER.fullmatch(name)
        if layer is None:
            return size if self.rank == 0 else 0
        if int(layer[1]) not in self.layers:
            return 0
        if self.split == "pipeline" or layer[2].startswith(_WHOLE):
            return size
        return -(-size // self.ranks)


def tensor_parts(model: ModelConfig, ranks: int) -> list[PlannedPart]:
    """Equal parts of every layer.

    Raises:
        InvalidOption: heads or widths of the model cannot be divided by `ranks`.
    """
    possible = tensor_counts(model.text)
    if ranks not in possible:
        counts = ", ".join(map(str, possible))
        into = f"into {counts} parts" if possible else "into no parts"
        raise InvalidOption(
            f"tensor parallel over {ranks} machines: the {model.text.num_key_value_heads} "
            f"key-value heads of this model divide {into}. Give --split pipeline"
            + (", or another number of machines." if possible else ".")
        )
    layers = range(model.text.num_hidden_layers)
    return [PlannedPart("tensor", rank, ranks, layers) for rank in range(ranks)]


def tensor_counts(text: TextConfig) -> list[int]:
    """Numbers of ranks, 2 or more, that a tensor parallel split divides the model over.

    Key-value heads are divided whole, and columns of the output and down projections in groups.
    """
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    return [
        ranks
        for ranks in range(2, kv_heads + 1)
        if kv_heads % ranks == 0
        and text.intermediate_size % (ranks * _GROUP) == 0
        and (heads // ranks * text.head_dim) % _GROUP == 0
    ]


def pipeline_parts(
    model: ModelConfig, sizes: Mapping[str, int], memory: Sequence[int]
) -> list[PlannedPart]:
    """Layers in proportion to memory, rank 0's less what it alone holds.

    Args:
        memory: bytes that each rank may use.

    Raises:
        InvalidOption: more ranks than layers.
    """
    count, ranks = model.text.num_hidden_layers, len(memory)
    if ranks > count:
        raise InvalidOption(
            f"pipeline parallel over {ranks} machines: this model has {count} layers, and each "
            "machine holds one at least. Name fewer machines."
        )
    own = sum(size for name, size in sizes.items() if _LAYER.fullmatch(name) is None)
    layer = sum(
        size for name, size in sizes.items() if name.startswith(f"{LANGUAGE}model.layers.0.")
    )
    free = [max(layer, memory[0] - own), *(max(layer, size) for size in memory[1:])]
    counts = _shares(count, free)
    starts = [sum(counts[:rank]) for rank in range(ranks)]
    return [
        PlannedPart("pipeline", rank, ranks, range(start, start + held))
        for rank, (start, held) in enumerate(zip(starts, counts, strict=True))
    ]


def _shares(count: int, weights: Sequence[int]) -> list[int]:
    """`count` in whole parts in proportion to `weights`, one at least for each."""
    rest, total = count - len(weights), sum(weights)
    exact = [rest * weight / total for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: rest - sum(shares)]:
        shares[i] += 1
    return [1 + share for share in shares]
