"""The choice of a quantization for each tensor, by its name and shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from magistral_convert.options import ConvertOptions
from magistral_mlx.checkpoint import names
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import InvalidOption
from magistral_mlx.quantization import AFFINE_GROUP_SIZES, Quantization

_HIGH_BITS = 6
_LAYER = re.compile(r"\.layers\.(\d+)\.")
EMBEDDING = names.EMBEDDING + "weight"
NORM = LANGUAGE + "model.norm.weight"
HEAD = names.HEAD + "weight"


@dataclass(frozen=True)
class Recipe:
    """The quantization of each tensor of one model.

    `base` is that of every matrix of the decoder (of the vision tower and projector too with
    `quantize_vision`). `high`, where it is not None, is that of the most sensitive matrices: the
    head, and the value and down projections of some layers. Without a base nothing is quantized.
    `chosen` holds those that were chosen for a size, by name.
    `keeps_floats` leaves what a quantized source has in floating point as it is.
    """

    base: Quantization | None
    high: Quantization | None
    layers: int
    tied: bool
    quantize_vision: bool
    keeps_floats: bool = False
    chosen: Mapping[str, Quantization] = field(default_factory=dict)

    @classmethod
    def of(cls, options: ConvertOptions, config: ModelConfig) -> Recipe:
        """Return the recipe that the options select."""
        base = options.scheme
        plus = options.recipe == "4bit-plus"
        return cls(
            base=base,
            high=Quantization(_HIGH_BITS, base.group_size) if base and plus else None,
            layers=config.text.num_hidden_layers,
            tied=config.text.tie_word_embeddings,
            quantize_vision=options.quantize_vision,
        )

    def scheme(self, name: str, shape: tuple[int, ...]) -> Quantization | None:
        """Return the quantization of a tensor; None where it stays in bfloat16.

        Norms, biases and the patch convolution stay, and so does a matrix whose rows no group
        size divides.

        Args:
            name: the canonical name.
            shape: (out, in) for a matrix.

        Raises:
            InvalidOption: the group size does not divide this matrix's rows, and another does.
        """
        if self.base is None or self.keeps_floats or len(shape) != 2:
            return None
        if not (self.quantize_vision or name.startswith(LANGUAGE)):
            return None
        chosen = self.high if self.high and self._is_sensitive(name) else self.base
        chosen = self.chosen.get(name, chosen)
        if chosen.fits(shape):
            return chosen
        fitting = [size for size in AFFINE_GROUP_SIZES if Quantization(4, size).fits(shape)]
        if not fitting:
            return None
        raise InvalidOption(
            f"{name.removesuffix('.weight')} has rows of {shape[1]}, which groups of "
            f"{chosen.group_size} do not divide. Use --mode affine --group-size {fitting[-1]}."
        )

    def _is_sensitive(self, name: str) -> bool:
        if name == (EMBEDDING if self.tied else HEAD):
            return True
        layer = layer_of(name)
        if layer is None:
            return False
        return name.endswith(("v_proj.weight", "down_proj.weight")) and is_sensitive_layer(
            layer, self.layers
        )


def layer_of(name: str) -> int | None:
    """Return the number of the decoder layer that a tensor belongs to; None for others."""
    found = _LAYER.search(name) if name.startswith(LANGUAGE) else None
    return int(found[1]) if found else None


def part_of(name: str) -> str:
    """Return what a tensor is within its layer: `….layers.3.mlp.up_proj.weight` -> `mlp.up_proj`"""
    return name.partition(".layers.")[2].partition(".")[2].removesuffix(".weight")


def is_sensitive_layer(index: int, layers: int) -> bool:
    """Return whether a layer is in the first or last eighth, or every third one between.

    The same choice as llama.cpp's Q4_K_M and mlx-lm's mixed recipes.
    """
    eighth = layers // 8
    return index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2
