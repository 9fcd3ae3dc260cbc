"""Bits of each matrix of a model, chosen for a size."""

from __future__ import annotations

from magistral_convert.calibration.allocation import SchemeChoice, allocate
from magistral_convert.calibration.sensitivity import measure
from magistral_convert.calibration.text import CalibrationText
from magistral_convert.options import ConvertOptions
from magistral_convert.plan import ConversionPlan
from magistral_mlx.config import TextConfig
from magistral_mlx.errors import InvalidOption
from magistral_mlx.quantization import Quantization

_HEADERS = 1 << 20  # of the files, which grow with the number of exceptions


def choose_schemes(
    plan: ConversionPlan, config: TextConfig, text: CalibrationText, options: ConvertOptions
) -> dict[str, Quantization]:
    """Measure the sensitivity of each matrix, and return the schemes for the size asked for.

    Args:
        plan: in layer order, of the same options without a target.

    Raises:
        InvalidOption: the size is below that of 2 bits.
    """
    assert options.scheme
    choices = measure(plan, config, text.tokens, options.scheme.group_size)
    budget = _budget(plan, choices, options)
    try:
        found = allocate(choices, budget)
    except ValueError:
        least = sum(min(c.nbytes for c in of_matrix) for of_matrix in choices.values())
        rest = _rest(plan, choices)
        weights = sum(t.rows * t.columns for t in plan.tensors if t.name in choices)
        raise InvalidOption(
            f"that is smaller than all matrices at 2 bits, which take {(least + rest) / 1e6:,.0f} "
            f"MB in all, or {8 * least / weights:.2f} bits a weight. Give a larger target."
        ) from None
    return {name: choice.scheme for name, choice in found.items()}


def _budget(
    plan: ConversionPlan, choices: dict[str, list[SchemeChoice]], options: ConvertOptions
) -> int:
    if options.target_size is not None:
        return options.target_size - _rest(plan, choices)
    assert options.target_bits is not None
    weights = sum(t.rows * t.columns for t in plan.tensors if t.name in choices)
    return int(weights * options.target_bits / 8)


def _rest(plan: ConversionPlan, choices: dict[str, list[SchemeChoice]]) -> int:
    """Bytes of what is not chosen, and of the headers."""
    return _HEADERS + sum(t.nbytes for t in plan.tensors if t.name not in choices)
