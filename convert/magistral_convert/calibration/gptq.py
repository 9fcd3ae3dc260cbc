"""Error compensation (GPTQ, arXiv 2210.17323) with searched scales.

Columns are rounded one after another, and each rounding error is made up for in the columns that
are still to come, as far as the inputs of both go together. The order is by weight, heaviest first;
scales are searched beforehand, with the original weights, so that groups stay contiguous.

The products of inputs, (in, in), are kept for blocks of columns along the diagonal: whole for most
matrices, and of the 32,768 inputs of Magistral's down projections in four blocks of 0.27 GB, where
one would take 4.3 GB. Compensation does not cross a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_convert.calibration.memory import PRODUCT_COLUMNS
from magistral_convert.calibration.search import Floats, Packed, bfloat16, fit, pack
from magistral_mlx.quantization import Quantization

_STEP = 32  # columns between two updates of all that follow
# Products of different columns are estimated from few tokens, and taken smaller by this share. It
# weighs on all columns alike, where damping by the mean alone would drown the quiet ones.
_SHRINKAGE = 0.1
_DAMPING = 0.001  # share of the mean diagonal that is added to it, for columns that are never used


@dataclass(frozen=True)
class Factor:
    """One block of columns. order: (K,), heaviest first. upper: (K, K), the Cholesky factor U of
    the inverse of the ordered products, U.T @ U."""

    order: NDArray[np.intp]
    upper: Floats


def blocks(columns: int) -> list[slice]:
    """Return the blocks of columns that products are kept for."""
    return [
        slice(start, min(start + PRODUCT_COLUMNS, columns))
        for start in range(0, columns, PRODUCT_COLUMNS)
    ]


def factorize(products: Floats) -> Factor:
    """Factorize the mean products of inputs, (K, K)."""
    diagonal = np.diagonal(products).astype(np.float64)
    order = np.argsort(-diagonal, kind="stable")
    matrix = products[np.ix_(order, order)].astype(np.float64)
    places = np.arange(len(matrix))
    mean = diagonal.mean() or 1.0
    matrix *= 1 - _SHRINKAGE
    matrix[places, places] = diagonal[order] + _DAMPING * mean
    inverse = np.linalg.inv(matrix)
    inverse = (inverse + inverse.T) / 2
    return Factor(order, np.linalg.cholesky(inverse).T.astype(np.float32))


def compensate(
    weights: Floats, importance: Floats, factors: list[Factor], scheme: Quantization
) -> Packed:
    """Quantize rows, (R, columns), with compensation; see `search` for the rest.

    Args:
        factors: of each of `blocks`.
    """
    scales, biases, codes = fit(weights, importance, scheme)
    left = weights.T.copy()  # (columns, R)
    scale_of, bias_of = scales.T.copy(), biases.T.copy()
    for block, factor in zip(blocks(weights.shape[1]), factors, strict=True):
        order = factor.order + block.start
        groups_of = order // scheme.group_size
        codes[:, order] = _round_in_order(
            left[order],
            scale_of[groups_of],
            bias_of[groups_of],
            factor.upper,
            2**scheme.bits - 1,
        ).T
    return pack(codes, scheme.bits), bfloat16(scales), bfloat16(biases)


def _round_in_order(
    left: Floats, scales: Floats, biases: Floats, upper: Floats, most: int
) -> Floats:
    """Return the codes of columns, the first axis, in the order in which they are rounded."""
    codes = np.empty_like(left)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
    for start in range(0, len(left), _STEP):
        stop = min(start + _STEP, len(left))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for place in range(start, stop):
            done = place - start
            column = left[place] - upper[start:place, place] @ errors[:done]
            code = np.clip(np.rint((column - biases[place]) * inverse[place]), 0, most)
            codes[place] = code
            errors[done] = (column - (code * scales[place] + biases[place])) / upper[place, place]
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return codes
