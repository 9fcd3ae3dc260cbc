"""Fusion: an adapter's changes become part of the rows that are converted.

    rows = (base + L R) * gain       L (rows, r), scaled, and R (r, columns)

in float32, before anything is quantized. The factors are read as each tensor is converted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magistral_mlx.checkpoint.adapters.stored import StoredAdapter, StoredChange
from magistral_mlx.checkpoint.header import DTYPE_BYTES, StoredTensor
from magistral_mlx.checkpoint.names import EMBEDDING_PATH, HEAD_PATH
from magistral_mlx.config import ModelConfig
from magistral_mlx.errors import CheckpointError

Floats = NDArray[np.float32]

# NumPy has no bfloat16: its bits travel as uint16.
NUMPY_DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


@dataclass(frozen=True)
class Fusion:
    """What an adapter makes of one matrix (rows, columns).

    change: its factors. whole: a matrix in place of the base's. by_rows: whether the rows of the
    matrix are the inputs of the change, as those of an embedding are.
    """

    change: StoredChange | None
    whole: StoredTensor | None
    by_rows: bool

    def apply(self, base: NDArray[Any], start: int) -> Floats:
        """Fuse rows from `start` on, (R, columns), given as `read_rows` gives them.

        Raises:
            CheckpointError: the adapter's file cannot be read, or holds infinities or NaNs.
        """
        stop = start + len(base)
        rows = to_float32(base) if self.whole is None else _read(self.whole, start, stop)
        source = self.whole
        if self.change is not None:
            source = self.change.b
            left, right = self._factors(self.change)
            rows += (left[start:stop] * np.float32(self.change.scale)) @ right
            if self.change.magnitude is not None:
                lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
                rows *= _whole(self.change.magnitude)[start:stop, None] / lengths
        if source is not None and not np.isfinite(rows).all():
            raise CheckpointError(
                f"{source.name} in {source.file} makes infinities or NaNs. Fetch or train the "
                "adapter again."
            )
        return rows

    def _factors(self, change: StoredChange) -> tuple[Floats, Floats]:
        """L (rows, r) and R (r, columns)."""
        a, b = _whole(change.a), _whole(change.b)
        if change.is_transposed:
            a, b = a.T, b.T
        return (a, b) if self.by_rows else (b.T, a.T)


def fusions(adapter: StoredAdapter, config: ModelConfig) -> dict[str, Fusion]:
    """Return what an adapter makes of each matrix that it changes, by the name of its weight.

    Raises:
        CheckpointError: it changes one of two matrices that are the same.
    """
    _whole.cache_clear()  # the files of an earlier conversion may have changed
    paths = {**adapter.replaced, **adapter.changes}
    if config.text.tie_word_embeddings and (HEAD_PATH in paths or EMBEDDING_PATH in paths):
        raise CheckpointError(
            f"{adapter.folder} changes the head or the embedding of a model in which they are one "
            "matrix, so it cannot be fused. Load it with --adapter instead."
        )
    return {
        f"{path}.weight": Fusion(
            adapter.changes.get(path), adapter.replaced.get(path), path == EMBEDDING_PATH
        )
        for path in paths
    }


def to_float32(values: NDArray[Any]) -> Floats:
    """Widen values of `NUMPY_DTYPES`."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


@lru_cache(maxsize=16)
def _whole(tensor: StoredTensor) -> Floats:
    return _read(tensor, 0, tensor.shape[0])


def _read(tensor: StoredTensor, start: int, stop: int) -> Floats:
    """Read rows `start` to `stop` of a tensor in float32."""
    row = int(np.prod(tensor.shape[1:], dtype=int))
    offset = tensor.offset + start * row * DTYPE_BYTES[tensor.dtype]
    try:
        values = np.fromfile(
            tensor.file, NUMPY_DTYPES[tensor.dtype], (stop - start) * row, offset=offset
        )
    except OSError as error:
        raise CheckpointError(f"cannot read {tensor.file}: {error.strerror}.") from None
    if len(values) != (stop - start) * row:
        raise CheckpointError(f"{tensor.file} has become shorter. Fetch that file again.")
    return to_float32(values).reshape(stop - start, *tensor.shape[1:])
