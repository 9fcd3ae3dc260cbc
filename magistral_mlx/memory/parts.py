"""Bytes of the parts of a model that is split over machines, and the splits that a model allows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import ModelConfig, TextConfig
from magistral_mlx.errors import InvalidOption
from magistral_mlx.memory.peak import Weights, sum_weights
from magistral_mlx.split import Split

_LAYER = re.compile(rf"{re.escape(LANGUAGE)}model\.layers\.(\d+)\.(.+)")
_WHOLE = ("input_layernorm.", "post_attention_layernorm.")  # of a layer, on every rank
_GROUP = 64  # columns that share a scale, and are never cut


def part_weights(split: Split, sizes: Mapping[str, int], model: ModelConfig) -> Weights:
    """Bytes of the weights that a rank holds. sizes: of all tensors, by canonical name."""
    layers = split.layers(model.text.num_hidden_layers)
    held = {name: _part_bytes(split, layers, name, size) for name, size in sizes.items()}
    return sum_weights({name: size for name, size in held.items() if size}, model)


def _part_bytes(split: Split, layers: range, name: str, size: int) -> int:
    layer = _LAYER.fullmatch(name)
    if layer is None:
        return size if split.has_ends else 0
    if int(layer[1]) not in layers:
        return 0
    if split.kind == "pipeline" or layer[2].startswith(_WHOLE):
        return size
    return -(-size // split.size)


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


def check_tensor(model: ModelConfig, ranks: int) -> None:
    """Check that a model can be divided tensor parallel.

    Raises:
        InvalidOption: heads or widths of the model cannot be divided by `ranks`.
    """
    possible = tensor_counts(model.text)
    if ranks in possible:
        return
    counts = ", ".join(map(str, possible))
    into = f"into {counts} parts" if possible else "into no parts"
    raise InvalidOption(
        f"tensor parallel over {ranks} machines: the {model.text.num_key_value_heads} "
        f"key-value heads of this model divide {into}. Give --split pipeline"
        + (", or another number of machines." if possible else ".")
    )


def pipeline_shares(
    model: ModelConfig, sizes: Mapping[str, int], memory: Sequence[int]
) -> tuple[int, ...]:
    """Numbers of layers in proportion to memory, rank 0's less what it alone holds.

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
    return _in_proportion(count, free)


def _in_proportion(count: int, weights: Sequence[int]) -> tuple[int, ...]:
    """`count` in whole parts in proportion to `weights`, one at least for each."""
    rest, total = count - len(weights), sum(weights)
    exact = [rest * weight / total for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: rest - sum(shares)]:
        shares[i] += 1
    return tuple(1 + share for share in shares)
