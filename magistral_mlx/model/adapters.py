"""Adapters: low-rank changes of matrices (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353).

The base's weights stay as they are, quantized or not, and are read once for all rows of a pass.
Each row gets the changes of its own adapter on top:

    y = x W.T                        the base's product, one for all rows
    y = (y + (x A) B) * gain         in the rows of one adapter; gain is DoRA's, else 1

An adapter belongs to the sequences that use it, not to the model: a pass names the adapters of its
rows (`AdapterRows.using`), and each module looks itself up in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from magistral_mlx.backend import mx


@dataclass(eq=False)
class MatrixChange:
    """Change of one matrix (out, in).

    weight: (out, in) in place of the base's; None keeps that. a: (in, r), scaled, and b: (r, out),
    or both None. magnitude: (out,) float32, DoRA's lengths of the rows of the changed matrix, until
    `gain`, (out,), has been computed from them.

    Products are in the dtype of the weight and the factors, and results in that of the base's. A
    quantized head has its input and its logits in float32: MLX would cast a whole matrix to it.
    """

    weight: mx.array | None = None
    a: mx.array | None = None
    b: mx.array | None = None
    magnitude: mx.array | None = None
    gain: mx.array | None = None

    def __call__(self, x: mx.array, y: mx.array) -> mx.array:
        """(…, in), (…, out) of the base -> (…, out)"""
        assert self.magnitude is None, "its gain is computed first"
        dtype = y.dtype
        if self.weight is not None:
            y = (x.astype(self.weight.dtype) @ self.weight.T).astype(dtype)
        if self.a is not None and self.b is not None:
            inner = x.astype(self.a.dtype) @ self.a
            if self.b.dtype == dtype:
                y = mx.addmm(y, inner, self.b)
            else:
                y = y + (inner @ self.b).astype(dtype)
        return y if self.gain is None else (y * self.gain).astype(dtype)


@dataclass(eq=False)
class EmbeddingChange:
    """Change of an embedding: a (vocab, r), scaled, and b (r, D); table (vocab, D) instead of it.

    Each may be None, a and b together.
    """

    table: mx.array | None = None
    a: mx.array | None = None
    b: mx.array | None = None

    def __call__(self, tokens: mx.array, embedded: mx.array) -> mx.array:
        """(B, L), (B, L, D) of the base -> (B, L, D)"""
        if self.table is not None:
            embedded = self.table[tokens]
        if self.a is not None and self.b is not None:
            embedded = mx.addmm(embedded, self.a[tokens], self.b)
        return embedded


@dataclass(eq=False)
class Adapter:
    """A loaded adapter.

    changes: by the path of the matrix, as in "language_model.model.layers.0.self_attn.q_proj".
    embedding: of the token embedding. fingerprint: of its content; equal ones change the model
    equally. changes_vision: whether images have other features with it.
    """

    fingerprint: int
    nbytes: int
    changes: Mapping[str, MatrixChange]
    embedding: EmbeddingChange | None = None
    changes_vision: bool = False


@dataclass(eq=False)
class AdapterRows:
    """The adapters of the rows of the present pass, shared by all modules of a model.

    Each adapter is computed for the rows that use it alone: they are gathered by their numbers, and
    its results take their places. The numbers are None where one adapter has all rows.
    """

    _rows: Sequence[tuple[Adapter, list[int] | None]] = field(default=())
    _orders: dict[tuple[int, ...], mx.array] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._rows)

    @contextmanager
    def using(self, adapters: Sequence[Adapter | None]) -> Iterator[None]:
        """Build a pass inside, whose rows have these adapters; None is the base alone."""
        if not any(adapters):
            yield
            return
        different = list(dict.fromkeys(filter(None, adapters)))
        if len(different) == 1 and all(adapters):
            self._rows = [(different[0], None)]
        else:
            self._rows = [
                (one, [row for row, other in enumerate(adapters) if other is one])
                for one in different
            ]
        try:
            yield
        finally:
            self._rows = ()
            self._orders.clear()

    def changed(self, path: str, x: mx.array, y: mx.array) -> mx.array:
        """Change a matrix's product (B, L, out) of (B, L, in) in the rows of each adapter."""
        return self._changed(x, y, lambda adapter: adapter.changes.get(path))

    def embedded(self, tokens: mx.array, y: mx.array) -> mx.array:
        """Change the embeddings (B, L, D) of (B, L) tokens in the rows of each adapter."""
        return self._changed(tokens, y, lambda adapter: adapter.embedding)

    def _changed(
        self,
        x: mx.array,
        y: mx.array,
        change_of: Callable[[Adapter], MatrixChange | EmbeddingChange | None],
    ) -> mx.array:
        rows, parts = list[int](), [y]
        for adapter, own in self._rows:
            change = change_of(adapter)
            if change is None:
                continue
            if own is None:
                return change(x, y)
            chosen = mx.array(own)
            parts.append(change(x[chosen], y[chosen]))
            rows += own
        return y if not rows else mx.concatenate(parts)[self._order(len(y), tuple(rows))]

    def _order(self, count: int, changed: tuple[int, ...]) -> mx.array:
        """(count,) places of a pass's rows among all old ones, followed by the changed ones."""
        order = self._orders.get(changed)
        if order is None:
            places = list(range(count))
            for place, row in enumerate(changed, count):
                places[row] = place
            order = self._orders[changed] = mx.array(places)
        return order
