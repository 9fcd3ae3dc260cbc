"""Converted form of each stored tensor type, and its error on a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magistral_convert.plan import ConversionPlan, TensorConversion
from magistral_convert.quantize import dequantize_rows, quantize_rows
from magistral_convert.quantized_source import encode_blocks
from magistral_convert.source_rows import read_raw, read_rows
from magistral_mlx.checkpoint.gguf.layout import EXACT
from magistral_mlx.quantization import Quantization

Floats = NDArray[np.float32]

# Of each type so many tensors are converted to see the error: rows from so many places of each.
_TENSORS, _PLACES, _ROWS = 4, 4, 16


@dataclass(frozen=True)
class Outcome:
    """Tensors of one stored type that become the same.

    `error` is the root mean square of the differences, as a share of that of the weights; None
    where the source's files are not on this machine.
    """

    kind: str
    done: str
    tensors: int
    parameters: int
    source_bytes: int
    output_bytes: int
    error: float | None


def outcomes(plan: ConversionPlan) -> list[Outcome]:
    """Return the converted form of each type, largest first, judged by some rows of each.

    No rows are read unless all files are on this machine.

    Raises:
        CheckpointError: a source file cannot be read.
    """
    groups: dict[tuple[str, str], list[TensorConversion]] = {}
    for tensor in plan.tensors:
        groups.setdefault((_kind(tensor), _what(tensor)), []).append(tensor)
    here = all(file.exists() for file in {file for t in plan.tensors for file in t.files})
    found = [_outcome(kind, done, ts, judged=here) for (kind, done), ts in groups.items()]
    return sorted(found, key=lambda outcome: -outcome.parameters)


def _outcome(kind: str, done: str, tensors: list[TensorConversion], *, judged: bool) -> Outcome:
    sample = tensors[:: max(1, len(tensors) // _TENSORS)][:_TENSORS]
    return Outcome(
        kind,
        done,
        len(tensors),
        parameters=sum(tensor.rows * tensor.columns for tensor in tensors),
        source_bytes=sum(tensor.source_bytes for tensor in tensors),
        output_bytes=sum(tensor.nbytes for tensor in tensors),
        error=_error(sample) if judged else None,
    )


def _kind(tensor: TensorConversion) -> str:
    if tensor.stored:
        return _form(tensor.stored)
    return tensor.source.dtype


def _what(tensor: TensorConversion) -> str:
    changed = "with the adapter, " if tensor.fusion else ""
    if tensor.scheme is None:
        return changed + ("dequantized to bfloat16" if tensor.is_quantized else "bfloat16")
    if not tensor.is_laid_out:
        return f"{changed}quantized to {_form(tensor.scheme)}"
    how = "codes as they are" if tensor.source.dtype in EXACT else "fitted"
    return f"{how}, {_form(tensor.scheme)}"


def _form(scheme: Quantization) -> str:
    kind = "" if scheme.mode == "affine" else f"{scheme.mode}, "
    return f"{kind}{scheme.bits} bits in groups of {scheme.group_size}"


def _error(tensors: Iterable[TensorConversion]) -> float:
    squares = wanted_squares = 0.0
    for tensor in tensors:
        for start, stop in _places(tensor):
            wanted, got = _floats(tensor, start, stop), _converted(tensor, start, stop)
            squares += float(np.square(got - wanted, dtype=float).sum())
            wanted_squares += float(np.square(wanted, dtype=float).sum())
    return (squares / wanted_squares) ** 0.5 if wanted_squares else 0.0


def _places(tensor: TensorConversion) -> Iterator[tuple[int, int]]:
    """Runs of rows from all over a tensor, whole heads where their rows change places."""
    unit = tensor.rope_head_rows or 1
    units, step = tensor.rows // unit, max(1, _ROWS // unit)
    for place in sorted({units * n // _PLACES for n in range(_PLACES)}):
        yield place * unit, min(place + step, units) * unit


def _converted(tensor: TensorConversion, start: int, stop: int) -> Floats:
    """(stop - start, columns) of what the output holds."""
    if tensor.is_laid_out:
        packed = encode_blocks(tensor, read_raw(tensor.source, tensor.rows, start, stop))
    else:
        packed = quantize_rows(read_rows(tensor, start, stop), tensor.scheme)
    parts = [bytes(part) for part in packed]
    return np.array(dequantize_rows(parts, stop - start, tensor.scheme, tensor.outputs[-1].dtype))


def _floats(tensor: TensorConversion, start: int, stop: int) -> Floats:
    """(stop - start, columns) of the source."""
    rows = read_rows(tensor, start, stop)
    if rows.dtype == np.uint16:  # the bits of bfloat16
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)
