"""Verification of converted tensors against their source, within the quantizer's error bound.

The bounds follow from MLX's quantizer (its documentation and kernels) and from the source alone,
so a wrong scale cannot excuse a wrong value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np

from magistral_convert.plan import TensorConversion
from magistral_convert.quantize import SMALLEST_GROUPS, dequantize_rows, to_bfloat16
from magistral_convert.quantized_source import layout_bound
from magistral_convert.source_rows import Rows, read_raw, read_rows
from magistral_convert.staging import StagingFolder
from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.gguf.blocks import dequantize
from magistral_mlx.checkpoint.gguf.layout import deinterleave_heads
from magistral_mlx.errors import CheckpointError
from magistral_mlx.quantization import Quantization

_SAMPLES = 4  # positions in a tensor
_EVERY = 9  # row of a head whose rows are laid out in another order: odd, so of every kind
_LEAST_COSINE = 0.05  # of rows and what a search made of them: 0.7 has been seen, at 2 bits
_SMALLEST_STEP = 1e-7  # affine scales are never smaller
_BFLOAT16 = 2.0**-8  # more than the relative error of a scale that is rounded to bfloat16
# Mode -> error of a value, as a share of its group's largest one. mxfp scales are rounded up to a
# power of two: half a step of the widest spacing. nvfp4 scales are e4m3.
_RELATIVE = {"mxfp4": 0.201, "mxfp8": 0.0626, "nvfp4": 0.1775}
# Mode -> error that comes on top: that of groups without a larger value, which become zeros.
_ABSOLUTE = {**SMALLEST_GROUPS, "nvfp4": 0.006, "affine": _SMALLEST_STEP}


def verify_tensor(tensor: TensorConversion, work: StagingFolder) -> None:
    """Compare rows at the beginning, the end and between with the source.

    Raises:
        CheckpointError: a value is further from the source's than the quantizer can put it.
    """
    for start, stop in _samples(tensor):
        written = [work.read(output, tensor, start, stop) for output in tensor.outputs]
        if tensor.is_laid_out:
            is_right = _is_same(tensor, start, stop, written)
        else:
            found = dequantize_rows(written, stop - start, tensor.scheme)
            is_right = is_within_bound(read_rows(tensor, start, stop), found, tensor.scheme)
        if not is_right:
            raise _wrong(tensor, start)


def verify_searched(tensor: TensorConversion, work: StagingFolder) -> None:
    """Compare sampled rows of a tensor whose scales were searched, in the mean.

    A search weighs errors by the inputs, so neither a value nor a row has a bound, and rows of loud
    weights that count little may be far off. They point the same way, as other rows do not.

    Raises:
        CheckpointError: rows do not go with the source's.
    """
    scheme = tensor.scheme
    if scheme is None or not tensor.is_quantized_here:
        verify_tensor(tensor, work)
        return
    for start, stop in _samples(tensor):
        source = read_rows(tensor, start, stop)
        wanted = to_bfloat16(source).astype(mx.float32)
        written = [work.read(output, tensor, start, stop) for output in tensor.outputs]
        found = dequantize_rows(written, stop - start, scheme)
        if not goes_together(wanted, found, scheme):
            raise _wrong(tensor, start)


def goes_together(wanted: mx.array, found: mx.array, scheme: Quantization) -> bool:
    """Whether rows, (R, columns) each, point the same way.

    Groups that are too small for the scheme go with any that are as small, NaNs and infinities with
    nothing.
    """
    groups = (-1, scheme.group_size)
    wanted, found = wanted.reshape(groups), found.reshape(groups)
    smallest = _ABSOLUTE[scheme.mode]
    of_wanted, of_found = (mx.abs(x).max(axis=-1, keepdims=True) for x in (wanted, found))
    is_small = (of_wanted <= smallest) & (of_found <= 2 * smallest)
    if is_small.all().item():
        return True
    largest = mx.maximum(of_wanted.max(), smallest)  # so that no square underflows
    wanted, found = (mx.where(is_small, 0, rows) / largest for rows in (wanted, found))
    along, energy, energy_found = (
        cast(float, (a * b).sum().item())
        for a, b in ((wanted, found), (wanted, wanted), (found, found))
    )
    return math.isfinite(energy_found) and along > _LEAST_COSINE * math.sqrt(energy * energy_found)


def is_within_bound(source: Rows, found: mx.array, scheme: Quantization | None) -> bool:
    """Return whether `found` (R, columns) is within the quantization error of `source`."""
    wanted = to_bfloat16(source).astype(mx.float32)
    error = mx.abs(wanted - found)
    if scheme is None:
        return bool(mx.all(error == 0))
    groups = (wanted.shape[0], -1, scheme.group_size)
    bound = _bound(wanted.reshape(groups), scheme)
    # A NaN or infinite bound must not accept anything.
    return bool(mx.all((error.reshape(groups) <= bound) & mx.isfinite(bound)))


def _samples(tensor: TensorConversion) -> Iterator[tuple[int, int]]:
    """Rows from all over a tensor, whole heads where their rows change places."""
    unit = tensor.rope_head_rows or 1
    last = tensor.rows // unit - 1
    for place in sorted({last * sample // (_SAMPLES - 1) for sample in range(_SAMPLES)}):
        yield place * unit, (place + 1) * unit


def _wrong(tensor: TensorConversion, start: int) -> CheckpointError:
    return CheckpointError(
        f"{tensor.source.name} of {tensor.source.file} was not converted correctly: "
        f"rows from {start} are outside the error bound of {_describe(tensor.scheme)}. The "
        "file holds infinities or NaNs, or the disk is failing: fetch that file again."
    )


def _is_same(tensor: TensorConversion, start: int, stop: int, written: list[bytes]) -> bool:
    """Return whether some of the rows written are the blocks', within the error of the layout."""
    assert tensor.scheme
    raw = read_raw(tensor.source, tensor.rows, start, stop)
    raw = deinterleave_heads(raw, tensor.rope_head_rows)[::_EVERY]
    parts = [
        np.frombuffer(part, np.uint8).reshape(stop - start, -1)[::_EVERY].tobytes()
        for part in written
    ]
    found = dequantize_rows(parts, len(raw), tensor.scheme, tensor.outputs[-1].dtype)
    error = np.abs(dequantize(tensor.source.dtype, raw) - np.array(found))
    bound = layout_bound(tensor, raw)
    groups = error.reshape(len(raw), -1, tensor.scheme.group_size)
    return bool((groups <= bound[..., None]).all())


def _bound(groups: mx.array, scheme: Quantization) -> mx.array:
    """Return the largest error of the quantizer in each group; (R, groups, 1)."""
    if scheme.mode != "affine":
        largest = mx.abs(groups).max(axis=-1, keepdims=True)
        return _RELATIVE[scheme.mode] * largest + _ABSOLUTE[scheme.mode]
    # The scale is stretched so that zero has a code, which can push the far end of the range out
    # by up to a whole step. Metal's kernel lets the range begin at zero.
    lowest, highest = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    width = mx.maximum(highest, 0) - lowest
    step = mx.maximum(width / (2**scheme.bits - 1), _SMALLEST_STEP)
    return step + _BFLOAT16 * width


def _describe(scheme: Quantization | None) -> str:
    if scheme is None:
        return "bfloat16"
    return f"{scheme.bits}-bit {scheme.mode} quantization"
