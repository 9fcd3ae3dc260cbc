"""Loading of an adapter's weights, in the compute dtype of its model."""

from __future__ import annotations

from typing import cast

from magistral_mlx.backend import mx
from magistral_mlx.checkpoint.adapters.stored import StoredAdapter, StoredChange
from magistral_mlx.checkpoint.header import StoredTensor
from magistral_mlx.checkpoint.names import EMBEDDING_PATH
from magistral_mlx.checkpoint.part import read_part, rows_part
from magistral_mlx.errors import CheckpointError
from magistral_mlx.model.adapters import Adapter, EmbeddingChange, MatrixChange
from magistral_mlx.model.linear import matrices_of, rows_of
from magistral_mlx.model.magistral import MagistralModel

_BLOCK = 4 << 20  # values of a matrix whose rows are read or measured at once


def load_adapter(stored: StoredAdapter, model: MagistralModel) -> Adapter:
    """Load an adapter for a model; the model stays as it is.

    Raises:
        CheckpointError: a file cannot be read, or holds infinities or NaNs.
    """
    try:
        arrays = cast(dict[str, mx.array], mx.load(str(stored.config.file)))
    except RuntimeError as error:
        raise CheckpointError(f"cannot read {stored.config.file}: {error}") from None

    def take(tensor: StoredTensor) -> mx.array:
        array = arrays.pop(tensor.name)
        mx.eval(array)  # read, before the GPU waits for it; see `checkpoint.load`
        _check_finite(tensor, array)
        return array

    changes: dict[str, MatrixChange] = {}
    embedding = None
    for path in {**stored.replaced, **stored.changes}:
        weight = a = b = magnitude = None
        if whole := stored.replaced.get(path):
            weight = _read_cast(whole, model.dtype)
        if change := stored.changes.get(path):
            a, b = _factors(change, take(change.a), take(change.b), model.dtype)
            if change.magnitude:
                magnitude = take(change.magnitude).astype(mx.float32)
                mx.eval(magnitude)
        if path == EMBEDDING_PATH:
            embedding = EmbeddingChange(weight, a, b)
        else:
            changes[path] = MatrixChange(weight, a, b, magnitude)
    adapter = Adapter(
        stored.fingerprint(),
        stored.nbytes(model.dtype.size),
        changes,
        embedding,
        stored.changes_vision,
    )
    compute_gains(adapter, model)
    return adapter


def compute_gains(adapter: Adapter, model: MagistralModel) -> None:
    """Compute DoRA's gains of the matrices that are in memory, and have none yet.

    The length of each row of the changed matrix is a property of both weights: the gain makes it
    the one that was trained. To be called again when the vision tower has been loaded.
    """
    for path, module, rows in matrices_of(model):
        change = adapter.changes.get(path)
        if change is None or change.magnitude is None:
            continue
        assert change.a is not None and change.b is not None
        step = max(1, _BLOCK // change.a.shape[0])
        lengths = []
        for start in range(0, rows.stop - rows.start, step):
            stop = min(start + step, rows.stop - rows.start)
            matrix = change.weight
            if matrix is None:
                matrix = rows_of(module, slice(rows.start + start, rows.start + stop))
            else:
                matrix = matrix[start:stop].astype(mx.float32)
            b = change.b[:, start:stop].astype(mx.float32)
            lengths.append(mx.linalg.norm(matrix + (change.a.astype(mx.float32) @ b).T, axis=1))
            mx.eval(lengths[-1])
        change.gain = (change.magnitude / mx.concatenate(lengths)).astype(model.dtype)
        mx.eval(change.gain)
        change.magnitude = None


def _read_cast(tensor: StoredTensor, dtype: mx.Dtype) -> mx.array:
    """Read a whole head or embedding; memory holds it in `dtype`, and some of its stored rows."""
    rows, width = tensor.shape
    array = mx.zeros((rows, width), dtype)
    step = max(1, _BLOCK // width)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        block = read_part(rows_part(tensor, start, stop))
        _check_finite(tensor, block)
        array[start:stop] = block.astype(dtype)
        mx.eval(array)  # written in place
    return array


def _check_finite(tensor: StoredTensor, array: mx.array) -> None:
    if not mx.all(mx.isfinite(array)).item():
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} holds infinities or NaNs. Fetch or train the adapter "
            "again."
        )


def _factors(
    change: StoredChange, a: mx.array, b: mx.array, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """The factors (in, r), with the scale in it, and (r, out), contiguous."""
    if change.is_transposed:
        a, b = a.T, b.T
    a = mx.contiguous((a.astype(mx.float32) * change.scale).astype(dtype))
    b = mx.contiguous(b.astype(dtype))
    mx.eval(a, b)
    return a, b
