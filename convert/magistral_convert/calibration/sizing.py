"""Bits of each matrix of a model, chosen for a size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from magistral_convert.calibration.allocation import Choices, SchemeChoice, allocate
from magistral_convert.calibration.measured import MeasuredChoices
from magistral_convert.calibration.sensitivity import measure
from magistral_convert.calibration.text import CalibrationText
from magistral_convert.options import ConvertOptions, OnConversionProgress
from magistral_convert.plan import ConversionPlan
from magistral_mlx.backend import backend
from magistral_mlx.checkpoint.names import LANGUAGE
from magistral_mlx.config import TextConfig
from magistral_mlx.errors import InvalidOption
from magistral_mlx.quantization import AFFINE_BITS, Quantization

_HEADERS = 1 << 20  # of the files, which grow with the number of exceptions


@dataclass(frozen=True)
class Sizing:
    """Schemes that were chosen for a size, and the error to expect of them.

    error: sum of the costs of all matrices (see `sensitivity`). uniform: the same for each number
    of bits, were it that of all matrices.
    """

    schemes: dict[str, Quantization]
    error: float
    uniform: dict[int, float]

    def describe(self) -> str:
        """Compare the expected error with that of 4 bits throughout."""
        share = self.error / self.uniform[4] if self.uniform[4] else 0.0
        return f"{share:.2f} times that of 4 bits throughout, as far as single matrices tell"

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {"error": self.error, "uniform": {str(b): e for b, e in self.uniform.items()}}


def choose_schemes(
    plan: ConversionPlan,
    config: TextConfig,
    text: CalibrationText,
    options: ConvertOptions,
    weights: str,
    on_progress: OnConversionProgress | None = None,
) -> Sizing:
    """Measure the sensitivity of each matrix, and choose schemes for the size asked for.

    Args:
        plan: in layer order, of the same options without a target.
        weights: identity of the source and of what changes it.

    Raises:
        InvalidOption: the size is below that of 2 bits.
    """
    assert options.scheme
    group_size = options.scheme.group_size
    kept = MeasuredChoices(weights, text.identity, str(group_size), backend().name)
    choices = kept.load()
    if choices is None:
        choices = measure(plan, config, text.tokens, group_size, on_progress)
        kept.save(choices)
    found = _allocate(plan, choices, options)
    uniform = {
        bits: sum(
            c.cost for of_matrix in choices.values() for c in of_matrix if c.scheme.bits == bits
        )
        for bits in AFFINE_BITS
    }
    return Sizing(
        {name: choice.scheme for name, choice in found.items()},
        sum(choice.cost for choice in found.values()),
        uniform,
    )


def expected_schemes(plan: ConversionPlan, options: ConvertOptions) -> dict[str, Quantization]:
    """Return schemes that fill the size asked for as well, by the number of weights alone: before
    anything is measured they tell what disk the result takes.

    Raises:
        InvalidOption: the size is below that of 2 bits.
    """
    assert options.scheme
    group_size = options.scheme.group_size
    choices: Choices = {}
    for tensor in plan.tensors:
        if tensor.scheme and tensor.name.startswith(LANGUAGE):
            weights = tensor.rows * tensor.columns
            choices[tensor.name] = [
                SchemeChoice(scheme, scheme.nbytes((tensor.rows, tensor.columns)), cost)
                for bits in AFFINE_BITS
                for scheme, cost in [(Quantization(bits, group_size), weights * 4.0**-bits)]
            ]
    found = _allocate(plan, choices, options)
    return {name: choice.scheme for name, choice in found.items()}


def _allocate(
    plan: ConversionPlan, choices: Choices, options: ConvertOptions
) -> dict[str, SchemeChoice]:
    """Raises `InvalidOption` where the size is below that of 2 bits."""
    try:
        return allocate(choices, _budget(plan, choices, options))
    except ValueError:
        least = sum(min(c.nbytes for c in of_matrix) for of_matrix in choices.values())
        count = sum(t.rows * t.columns for t in plan.tensors if t.name in choices)
        # Rounded up, so that what is told is enough.
        tenths = math.ceil((least + _rest(plan, choices)) / 1e5)
        hundredths = math.ceil(800 * least / count)
        raise InvalidOption(
            f"that is smaller than all matrices at 2 bits, which take {tenths / 10:,} MB in all, "
            f"or {hundredths / 100:.2f} bits a weight. Give that much or more."
        ) from None


def _budget(
    plan: ConversionPlan, choices: dict[str, list[SchemeChoice]], options: ConvertOptions
) -> int:
    if options.size is not None:
        return options.size - _rest(plan, choices)
    assert options.target_bits is not None
    weights = sum(t.rows * t.columns for t in plan.tensors if t.name in choices)
    return int(weights * options.target_bits / 8)


def _rest(plan: ConversionPlan, choices: dict[str, list[SchemeChoice]]) -> int:
    """Bytes of what is not chosen, and of the headers."""
    return _HEADERS + sum(t.nbytes for t in plan.tensors if t.name not in choices)
